//! Bytes nobody should send, on every socket: the process stays up, says why, and goes on serving others.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use holdfast_tests::{Client, Sandbox, wait_for};

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            u8::try_from(state & 0xff).unwrap()
        })
        .collect()
}

fn throw(mut stream: impl Read + Write, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
    let mut answer = [0; 4096];
    let _ = stream.read(&mut answer);
}

fn unix(path: &str) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    stream
}

fn peer_ports(sandbox: &Sandbox) -> Vec<u16> {
    let text = std::fs::read_to_string(sandbox.config()).unwrap();
    let ports = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("port")?.split('=').nth(1)?.trim().parse().ok());
    ports.collect()
}

#[test]
fn hostile_bytes_on_every_socket_harm_nobody() {
    let sandbox = Sandbox::start(&["--size", "16M", "--journal-size", "32M"]);
    let mut client = Client::connect(&sandbox.nodes[0].nbd_socket).unwrap();
    client.write_at(0, &[7; 4096]).unwrap();
    let ports = peer_ports(&sandbox);
    assert_eq!(ports.len(), 2, "the configuration names the replication ports");
    for seed in 1..20 {
        let mut bytes = noise(seed, 3000);
        for node in &sandbox.nodes {
            throw(unix(&node.nbd_socket), &bytes);
            throw(unix(&node.control), &bytes);
        }
        // A right beginning, then noise: past the handshake of NBD, and of HTTP.
        let mut nbd = vec![0, 0, 0, 1];
        nbd.extend_from_slice(b"IHAVEOPT");
        nbd.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 2]);
        nbd.extend_from_slice(b"r0");
        nbd.extend_from_slice(&bytes);
        throw(unix(&sandbox.nodes[0].nbd_socket), &nbd);
        let mut http =
            b"POST /v1/volumes/r0/promote HTTP/1.1\r\nhost: x\r\ncontent-length: 3000\r\n\r\n".to_vec();
        http.append(&mut bytes);
        throw(unix(&sandbox.nodes[1].control), &http);
        for port in &ports {
            let stream = TcpStream::connect(("127.0.0.1", *port)).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let mut hello = b"HFhello1\x01\0".to_vec();
            hello.extend_from_slice(&noise(seed, 200));
            throw(stream, &hello);
        }
    }
    let mut bytes = [0; 4096];
    client.read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 4096], "the client that was there all along is served");
    client.write_at(4096, &[8; 4096]).unwrap();
    client.flush().unwrap();
    assert_eq!(sandbox.status(0).unwrap()["role"], "Primary");
}

#[test]
fn connections_that_do_nothing_keep_nobody_out() {
    let sandbox = Sandbox::start(&["--size", "16M", "--journal-size", "32M"]);
    let node = &sandbox.nodes[0];
    let mut client = Client::connect(&node.nbd_socket).unwrap();
    let connect = |path: &str| -> Vec<UnixStream> { (0..64).map(|_| unix(path)).collect() };
    let began = Instant::now();
    let idle = (connect(&node.nbd_socket), connect(&node.control));
    let mut late = wait_for("a client to get in", || Client::connect(&node.nbd_socket).ok());
    late.write_at(0, &[9; 4096]).unwrap();
    assert_eq!(sandbox.status(0).unwrap()["role"], "Primary");
    // Sooner than any of them is closed for doing nothing.
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let mut bytes = [0; 4096];
    client.read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, [9; 4096], "who had negotiated before keeps its place");
    drop(idle);

    // Those who have negotiated are as many as there may be: they stay, and the next is told in the log.
    let mut others = vec![client, late];
    let said = sandbox.log(0).len();
    while let Ok(other) = Client::connect(&node.nbd_socket) {
        others.push(other);
    }
    assert_eq!(others.len(), 16);
    wait_for("the refusal to be logged", || {
        sandbox.log(0)[said..].contains("16 are open, as many as `nbd-connections` allows").then_some(())
    });
    others.iter_mut().for_each(|other| other.flush().unwrap());
}
