//! Hostile bytes, vanishing and stalling connections against a real replica: it closes them, says why, loses nothing
//! and goes on serving everybody else.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use replicator::VolumeHandle;
use replicator::options::{Secret, VolumeOptions};
use replicator::secrets::Secrets;
use replicator_core::config::Protocol;
use support::*;

struct Lone {
    _dir: tempfile::TempDir,
    options: VolumeOptions,
    volume: VolumeHandle,
}

/// A replica without peers, promoted.
fn lone() -> Lone {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let options = cluster(dir.path(), 1, Protocol::C).remove(0);
    replicator::create(&options, replicator::Content::Any, false).unwrap();
    let volume = replicator::open(options.clone()).unwrap();
    promote(&volume, false, 1);
    wait_for(&volume, "service", |status| status.core.serving);
    Lone { _dir: dir, options, volume }
}

impl Lone {
    fn client(&self) -> Client {
        Client::connect(self.options.nbd_unix.as_ref().unwrap(), "").unwrap()
    }

    fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(self.options.nbd_unix.as_ref().unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    fn still_serves(&self) {
        let data = pattern(99, 8192);
        let mut client = self.client();
        client.write(1 << 20, &data);
        assert_eq!(client.read(1 << 20, 8192), data);
        drop(client);
        wait_for(&self.volume, "all connections closed", |status| status.nbd_connections == 0);
        stop(&self.volume);
    }
}

/// The header of a write with nothing behind it.
fn write_header(offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

#[test]
fn noise_on_the_nbd_socket_ends_only_its_connection() {
    let lone = lone();
    for seed in 0..40 {
        let mut stream = lone.raw();
        let mut noise = pattern(seed, 3000);
        if seed % 2 == 0 {
            // Past the greeting, so that the options are reached.
            let mut hello = 3u32.to_be_bytes().to_vec();
            hello.extend(b"IHAVEOPT");
            noise.splice(0..0, hello);
        }
        let _ = stream.write_all(&noise);
        let _ = stream.shutdown(Shutdown::Write);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    }
    lone.still_serves();
}

#[test]
fn noise_after_the_handshake_ends_only_its_connection() {
    let lone = lone();
    for seed in 0..20 {
        let mut client = lone.client();
        client.stream().write_all(&pattern(seed, 500)).unwrap();
        assert!(client.receive().is_err());
    }
    lone.still_serves();
}

#[test]
fn a_client_that_vanishes_in_a_payload_leaves_nothing_behind() {
    let lone = lone();
    let mut client = lone.client();
    let before = lone.volume.status().unwrap().core.arena_used_bytes;
    // In the middle of a small payload, of a large one, of the second frame of a larger one.
    for (length, sent) in [(4096, 100), (1 << 20, 300_000), (3 << 20, (1 << 20) + 70_000), (1 << 20, 0)] {
        let mut torn = lone.client();
        torn.stream().write_all(&write_header(8 << 20, length)).unwrap();
        torn.stream().write_all(&vec![0xee; sent]).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        drop(torn);
    }
    wait_for(&lone.volume, "the torn connections gone", |status| status.nbd_connections == 1);
    // A whole frame of the third is an entry like any other; nothing else of it is there.
    assert!(client.read((8 << 20) + (1 << 20), 2 << 20).iter().all(|byte| *byte == 0));
    client.flush();
    drop(client);
    wait_for(&lone.volume, "memory given back", |status| status.core.arena_used_bytes <= before + (1 << 20));
    lone.still_serves();
}

#[test]
fn more_connections_than_allowed_are_refused() {
    let lone = lone();
    let clients: Vec<Client> = (0..lone.options.nbd_connections_max).map(|_| lone.client()).collect();
    let mut one_more = lone.raw();
    assert_eq!(one_more.read(&mut [0; 1]).unwrap(), 0);
    drop(clients);
    wait_for(&lone.volume, "connections closed", |status| status.nbd_connections == 0);
    lone.still_serves();
}

#[test]
fn many_large_requests_at_once_push_back_and_all_complete() {
    let lone = lone();
    // Far more than the arena holds, from several connections, reads and writes mixed.
    let workers: Vec<_> = (0..4u64)
        .map(|worker| {
            let mut client = lone.client();
            std::thread::spawn(move || {
                let base = worker * (16 << 20);
                for round in 0..4 {
                    let data = pattern(worker * 10 + round, 4 << 20);
                    let mut sent = 0;
                    for (index, part) in data.chunks(1 << 20).enumerate() {
                        client.send(1, 0, base + (index << 20) as u64, part.len(), part);
                        sent += 1;
                    }
                    for _ in 0..sent {
                        assert_eq!(client.receive().unwrap().1, 0);
                    }
                    for _ in 0..4 {
                        client.send(0, 0, base, 4 << 20, &[]);
                    }
                    for _ in 0..4 {
                        let (_, error, found) = client.receive().unwrap();
                        assert!(error == 0 && found == data);
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    lone.still_serves();
}

#[test]
fn clients_that_take_no_answers_leave_others_their_memory() {
    let lone = lone();
    let silent: Vec<Client> = (0..2)
        .map(|_| {
            let mut client = lone.client();
            client.send(0, 0, 0, 16 << 20, &[]);
            client
        })
        .collect();
    wait_for(&lone.volume, "the silent ones to hold memory", |status| {
        status.core.arena_used_bytes > 16 << 20
    });
    // They would have waited 30 s: the ones for each other's memory, the others for theirs.
    let mut longest = lone.client();
    longest.send(0, 0, 0, 16 << 20, &[]);
    let mut client = lone.client();
    client.stream().set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    client.stream().set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    let data = pattern(5, 1 << 20);
    client.write(0, &data);
    assert_eq!(client.read(0, 1 << 20), data, "long before the silent ones are dropped");
    drop((silent, longest, client));
    lone.still_serves();
}

#[test]
fn noise_on_the_peer_port_ends_only_its_connection() {
    let lone = lone();
    for seed in 0..40 {
        let mut stream = TcpStream::connect(lone.options.listen).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut noise = pattern(seed, 200);
        if seed % 2 == 0 {
            noise[..8].copy_from_slice(b"HFhello1");
        }
        let _ = stream.write_all(&noise);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "nobody is told anything before he proves the secret");
    }
    lone.still_serves();
}

#[test]
fn silent_peers_cannot_take_all_the_places() {
    let lone = lone();
    let silent: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(lone.options.listen).unwrap()).collect();
    // The oldest had to go for the newest.
    silent[0].set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    assert_eq!((&silent[0]).read(&mut [0; 1]).unwrap(), 0);
    lone.still_serves();
}

#[test]
fn who_speaks_no_tls_where_it_is_spoken_is_told_so_and_serves_nobody_ill() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut options = cluster(dir.path(), 2, Protocol::C);
    options.iter_mut().for_each(|options| options.tls = true);
    for options in &options {
        replicator::create(options, replicator::Content::Any, false).unwrap();
    }
    let volumes: Vec<_> = options.iter().map(|options| replicator::open(options.clone()).unwrap()).collect();
    let hello = [&b"HFhello1"[..], &[2, 0], &[0; 54]].concat();
    for bytes in [hello, vec![0x16, 3, 1, 255, 255], vec![0x17, 3, 3, 0, 1, 0], pattern(5, 70_000)] {
        let mut stream = TcpStream::connect(options[1].listen).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // It may be closed before all of it is written.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer[0] == 0x15, "an alert, or nothing: {answer:?}");
    }
    wait_for(&volumes[0], "a connection", |status| status.core.peers[0].role.is_some());
    volumes.iter().for_each(stop);
}

#[test]
fn nobody_without_the_secret_gets_a_link_in_tls() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut options = cluster(dir.path(), 3, Protocol::C);
    options.iter_mut().for_each(|options| options.tls = true);
    options[2].secrets = Secrets::only(Secret(b"another secret".to_vec()));
    for options in &options {
        replicator::create(options, replicator::Content::Any, false).unwrap();
    }
    let volumes: Vec<_> = options.iter().map(|options| replicator::open(options.clone()).unwrap()).collect();
    wait_for(&volumes[0], "a connection to the other", |status| status.core.peers[0].role.is_some());
    assert!(volumes[0].status().unwrap().core.peers[1].role.is_none());
    assert!(volumes[2].status().unwrap().core.peers.iter().all(|peer| peer.role.is_none()));
    volumes.iter().for_each(stop);
}
