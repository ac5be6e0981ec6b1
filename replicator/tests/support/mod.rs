//! What the integration tests share: options of a small cluster on this machine, and a plain NBD client that has
//! no code in common with the server.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use replicator::options::{DirectIo, PeerAddress, RingOptions, Secret, VolumeOptions};
use replicator::secrets::Secrets;
use replicator::{VolumeHandle, VolumeStatus};
use replicator_core::config::{Config, OnPeerLoss, PeerConfig, Protocol};
use replicator_core::event::AdminAction;
use replicator_core::units::{Incarnation, NodeId, ReignId, VolumeId};

/// Bytes of the volumes here.
pub const SIZE_BYTES: u64 = 64 << 20;

/// A port nobody listens on at the moment.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Options of `count` replicas of one volume, each in its own directory under `dir`.
pub fn cluster(dir: &Path, count: u8, protocol: Protocol) -> Vec<VolumeOptions> {
    let addresses: Vec<SocketAddr> = (0..count).map(|_| free_address()).collect();
    (0..count).map(|node| options(dir, node, &addresses, protocol)).collect()
}

fn options(dir: &Path, node: u8, addresses: &[SocketAddr], protocol: Protocol) -> VolumeOptions {
    let dir = dir.join(format!("n{node}"));
    std::fs::create_dir_all(&dir).unwrap();
    let others: Vec<u8> =
        (0..u8::try_from(addresses.len()).unwrap()).filter(|other| *other != node).collect();
    VolumeOptions {
        name: "r0".to_owned(),
        node_name: format!("n{node}"),
        core: Config {
            node: NodeId(node),
            peers: others.iter().map(|node| PeerConfig { node: NodeId(*node), protocol }).collect(),
            volume: VolumeId(0x1234_5678),
            incarnation: Incarnation(1),
            on_peer_loss: OnPeerLoss::Freeze,
            managed: false,
            disk_bytes: 64 << 20,
            arena_bytes: 32 << 20,
            frames_in_flight_max: 2,
            sync_interval_ms: 50,
            ping_interval_ms: 500,
            peer_timeout_ms: 3000,
            disk_timeout_ms: 30_000,
            checkpoint_bytes: 16 << 20,
            sum_pages_max: 64,
            scrub_interval_ms: 0,
            apply_delay_ms: 0,
            send_window_bytes: 8 << 20,
        },
        size_bytes: SIZE_BYTES,
        block_bytes: 512,
        disk: dir.join("disk"),
        journal: dir.join("journal"),
        branches: dir.join("branches"),
        journal_bytes: 64 << 20,
        direct_io: DirectIo::Auto,
        checksums: false,
        listen: addresses[usize::from(node)],
        peers: others
            .iter()
            .map(|node| PeerAddress {
                node: NodeId(*node),
                name: format!("n{node}"),
                address: addresses[usize::from(*node)],
            })
            .collect(),
        secrets: Secrets::only(Secret(b"a secret of the tests".to_vec())),
        tls: false,
        nbd_unix: Some(dir.join("nbd.sock")),
        nbd_tcp: None,
        nbd_tls: false,
        nbd_names: Vec::new(),
        nbd_connections_max: 16,
        ring: RingOptions::default(),
        busy_poll: std::time::Duration::from_micros(100),
        lock_memory: false,
    }
}

/// Promotes and waits for it.
pub fn promote(volume: &VolumeHandle, force: bool, reign: u128) {
    let action = AdminAction::Promote { force, reign: ReignId(reign) };
    volume.admin(action, Duration::from_secs(10)).unwrap();
}

/// Waits until `condition` holds of the status.
pub fn wait_for(
    volume: &VolumeHandle,
    what: &str,
    condition: impl Fn(&VolumeStatus) -> bool,
) -> VolumeStatus {
    let begun = Instant::now();
    loop {
        let status = volume.status().unwrap();
        if condition(&status) {
            return status;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{what} did not come: {status:#?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Stops and waits for the end.
pub fn stop(volume: &VolumeHandle) {
    volume.stop();
    volume.wait().unwrap();
}

/// An NBD client with simple replies, many requests in flight.
pub struct Client {
    stream: UnixStream,
    /// Bytes of the export.
    pub size_bytes: u64,
    next_cookie: u64,
    /// What was asked, by cookie: bytes of data in the reply.
    asked: HashMap<u64, usize>,
}

/// `NBD_CMD_FLAG_FUA`.
pub const FUA: u16 = 1;

impl Client {
    /// Connects and negotiates by `NBD_OPT_EXPORT_NAME`.
    pub fn connect(path: &Path, export: &str) -> std::io::Result<Self> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(1u32.to_be_bytes());
        hello.extend(u32::try_from(export.len()).unwrap().to_be_bytes());
        hello.extend(export.as_bytes());
        stream.write_all(&hello)?;
        let mut answer = [0; 10];
        stream.read_exact(&mut answer)?;
        let size_bytes = u64::from_be_bytes(answer[..8].try_into().unwrap());
        Ok(Self { stream, size_bytes, next_cookie: 1, asked: HashMap::new() })
    }

    /// The socket, for bytes that are no requests.
    pub fn stream(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// Sends a request and returns its cookie.
    pub fn send(&mut self, kind: u16, flags: u16, offset: u64, length: usize, payload: &[u8]) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
        bytes.extend(payload);
        self.stream.write_all(&bytes).unwrap();
        self.asked.insert(cookie, if kind == 0 { length } else { 0 });
        cookie
    }

    /// The next reply: cookie, error, data.
    pub fn receive(&mut self) -> std::io::Result<(u64, u32, Vec<u8>)> {
        let mut header = [0; 16];
        self.stream.read_exact(&mut header)?;
        assert_eq!(header[..4], 0x6744_6698u32.to_be_bytes());
        let error = u32::from_be_bytes(header[4..8].try_into().unwrap());
        let cookie = u64::from_be_bytes(header[8..].try_into().unwrap());
        let length = self.asked.remove(&cookie).ok_or(std::io::ErrorKind::InvalidData)?;
        let mut data = vec![0; if error == 0 { length } else { 0 }];
        self.stream.read_exact(&mut data)?;
        Ok((cookie, error, data))
    }

    /// One request and its reply, which must be a success.
    pub fn call(&mut self, kind: u16, flags: u16, offset: u64, length: usize, payload: &[u8]) -> Vec<u8> {
        let cookie = self.send(kind, flags, offset, length, payload);
        let (answered, error, data) = self.receive().unwrap();
        assert_eq!((answered, error), (cookie, 0));
        data
    }

    /// Writes.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.call(1, 0, offset, data.len(), data);
    }

    /// Reads.
    pub fn read(&mut self, offset: u64, length: usize) -> Vec<u8> {
        self.call(0, 0, offset, length, &[])
    }

    /// Flushes.
    pub fn flush(&mut self) {
        self.call(3, 0, 0, 0, &[]);
    }

    /// Trims (`zeroes` false) or zeroes.
    pub fn zero(&mut self, offset: u64, length: usize, zeroes: bool) {
        self.call(if zeroes { 6 } else { 4 }, if zeroes { 2 } else { 0 }, offset, length, &[]);
    }
}

/// Bytes that tell where they belong.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}
