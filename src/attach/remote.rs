//! A volume of a cluster that this machine is no part of: found at whichever of several addresses serves it, over TLS,
//! which the kernel's NBD client does not speak. For each connection a thread stands between the kernel and TLS.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use replicator::client_identity;
use rustix::event::{PollFd, PollFlags, poll};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use socket2::{SockRef, TcpKeepalive};

use super::backend::Backend;
use super::follow::serve_memory;
use super::identity::Identity;
use crate::nbd_negotiation::{Export, choose, greet, start_tls};

/// How long one address may take to answer, and one step of a negotiation.
const PATIENCE: Duration = Duration::from_secs(3);
/// What was sent and is not confirmed for so long: the other machine, or the way to it, is gone.
const SILENCE: Duration = Duration::from_secs(10);
/// What waits to be sent, either way, before more is taken in.
const WAITING_BYTES_MAX: usize = 1 << 20;
const PIECE_BYTES: usize = 128 << 10;

/// Where a volume may be found, and how to prove to be let in there.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    addresses: Vec<String>,
    tls: Arc<ClientConfig>,
}

impl Remote {
    /// `addresses` as HOST:PORT; the files that `holdfast client-certificate` made are in `certificates`.
    pub(crate) fn new(addresses: &[String], certificates: &Path) -> Result<Self> {
        for address in addresses {
            host_of(address)?;
        }
        Ok(Self { addresses: addresses.to_vec(), tls: client_identity::dialer(certificates)? })
    }

    /// Connects to the volume where it is served.
    pub(crate) fn connect(&self, volume: &str, connections: u8) -> Result<Backend> {
        let mut reasons = Vec::new();
        for address in &self.addresses {
            match self.connect_to(address, volume, connections) {
                Ok(backend) => return Ok(backend),
                Err(error) => reasons.push(format!("{address}: {error:#}")),
            }
        }
        bail!("{volume} is served nowhere: {}", reasons.join("; "))
    }

    fn connect_to(&self, address: &str, volume: &str, connections: u8) -> Result<Backend> {
        let mut secured = Vec::new();
        let mut found: Option<(Identity, Export)> = None;
        for _ in 0..connections {
            let (stream, export) = self.secure(address, volume)?;
            let identity: Identity = export
                .description
                .parse()
                .ok()
                .context("it does not say which volume it serves: it may be of another version")?;
            if found.as_ref().is_some_and(|(before, _)| *before != identity) {
                bail!("another node became primary of {volume} just now; try again");
            }
            secured.push(stream);
            found = Some((identity, export));
        }
        let (identity, export) = found.context("at least one connection is made")?;
        let sockets = secured.into_iter().map(proxied).collect::<io::Result<_>>()?;
        Ok(Backend { identity, export, sockets })
    }

    /// One connection, up to where requests may be sent.
    fn secure(
        &self,
        address: &str,
        volume: &str,
    ) -> Result<(StreamOwned<ClientConnection, TcpStream>, Export)> {
        let mut socket = dial(address)?;
        greet(&mut socket)?;
        start_tls(&mut socket)?;
        let connection = ClientConnection::new(Arc::clone(&self.tls), host_of(address)?)?;
        let mut stream = StreamOwned::new(connection, socket);
        let export = choose(&mut stream, volume)?;
        stream.sock.set_read_timeout(None)?;
        stream.sock.set_write_timeout(None)?;
        Ok((stream, export))
    }
}

/// The name or address in HOST:PORT.
fn host_of(address: &str) -> Result<ServerName<'static>> {
    let (host, _) =
        address.rsplit_once(':').with_context(|| format!("{address} is not of the form HOST:PORT"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    ServerName::try_from(host)
        .with_context(|| format!("{address} has neither a name nor an address before its port"))
}

fn dial(address: &str) -> Result<TcpStream> {
    let mut last = None;
    for resolved in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&resolved, PATIENCE) {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.set_write_timeout(Some(PATIENCE))?;
                // Without these the end of a machine would not be noticed while nothing is sent.
                let options = SockRef::from(&socket);
                options.set_tcp_user_timeout(Some(SILENCE))?;
                let often = TcpKeepalive::new().with_time(PATIENCE).with_interval(PATIENCE);
                options.set_tcp_keepalive(&often)?;
                return Ok(socket);
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| anyhow::anyhow!("the name has no address"), anyhow::Error::from))
}

/// Has a thread carry bytes between TLS and the socket that is returned, until either end is closed.
fn proxied(stream: StreamOwned<ClientConnection, TcpStream>) -> io::Result<UnixStream> {
    let (ours, kernels) = UnixStream::pair()?;
    let mut proxy = Proxy { tls: stream.conn, far: stream.sock, near: ours, to_near: Vec::new(), sent: 0 };
    std::thread::Builder::new().name("tls".to_owned()).spawn(move || {
        serve_memory();
        // Both sockets end with this thread: the kernel notices it, and so does the follower.
        let _ = proxy.run();
    })?;
    Ok(kernels)
}

struct Proxy {
    tls: ClientConnection,
    far: TcpStream,
    near: UnixStream,
    /// What came from afar, and how much of it the kernel has taken.
    to_near: Vec<u8>,
    sent: usize,
}

impl Proxy {
    fn run(&mut self) -> io::Result<()> {
        self.far.set_nonblocking(true)?;
        self.near.set_nonblocking(true)?;
        // What is taken in is bounded here: a write is never cut short.
        self.tls.set_buffer_limit(None);
        let mut piece = vec![0; PIECE_BYTES];
        // What came with the answer to the negotiation.
        self.open()?;
        loop {
            let (far, near) = self.wait()?;
            if far.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                if self.tls.read_tls(&mut self.far)? == 0 {
                    return Ok(());
                }
                self.open()?;
            }
            if near.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                match self.near.read(&mut piece) {
                    Ok(0) => return Ok(()),
                    Ok(count) => self.tls.writer().write_all(&piece[..count])?,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            self.send()?;
        }
    }

    /// Waits until something can be done; says what has come at either end.
    fn wait(&self) -> io::Result<(PollFlags, PollFlags)> {
        let (mut far, mut near) = (PollFlags::empty(), PollFlags::empty());
        if self.to_near.len() - self.sent < WAITING_BYTES_MAX {
            far |= PollFlags::IN;
        }
        // Requests that cannot leave wait in the kernel.
        if self.tls.wants_write() {
            far |= PollFlags::OUT;
        } else {
            near |= PollFlags::IN;
        }
        if self.sent < self.to_near.len() {
            near |= PollFlags::OUT;
        }
        let mut both = [PollFd::new(&self.far, far), PollFd::new(&self.near, near)];
        match poll(&mut both, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok((both[0].revents(), both[1].revents())),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the records that have come.
    fn open(&mut self) -> io::Result<()> {
        let state = self.tls.process_new_packets().map_err(io::Error::other)?;
        let at = self.to_near.len();
        self.to_near.resize(at + state.plaintext_bytes_to_read(), 0);
        self.tls.reader().read_exact(&mut self.to_near[at..])
    }

    /// Sends what can be sent without waiting, both ways.
    fn send(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.far) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        while self.sent < self.to_near.len() {
            match self.near.write(&self.to_near[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.to_near.clear();
        self.sent = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for address in ["10.0.0.1:10809", "[fd00::1]:10809", "db-a.example:10809"] {
            host_of(address).unwrap();
        }
        for address in ["10.0.0.1", "", "a b:1", ":10809"] {
            assert!(host_of(address).is_err(), "{address}");
        }
    }
}
