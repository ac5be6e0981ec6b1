//! A small NBD client of our own for the demonstration: requests over a unix socket, simple replies, pipelined
//! writes.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::nbd_negotiation::{garbled, negotiate, take};

const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
const COMMAND_FLUSH: u16 = 3;

/// A connection to an export.
#[derive(Debug)]
pub(crate) struct NbdClient {
    stream: UnixStream,
    size_bytes: u64,
    cookie: u64,
}

impl NbdClient {
    /// Connects to the export called `export`. No single read or write on the socket may take longer than `timeout`.
    pub(crate) fn connect(socket: &Path, export: &str, timeout: Duration) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let size_bytes = negotiate(&mut stream, export)?.size_bytes;
        Ok(Self { stream, size_bytes, cookie: 0 })
    }

    /// Bytes of the export.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Writes all of `writes` (offset and bytes), pipelined; `on_done` hears the index of each as soon as it is
    /// acknowledged.
    pub(crate) fn write_all(
        &mut self,
        writes: &[(u64, &[u8])],
        mut on_done: impl FnMut(usize),
    ) -> io::Result<()> {
        let first = self.cookie;
        let mut requests = Vec::new();
        for (offset, bytes) in writes {
            self.request(COMMAND_WRITE, *offset, bytes.len(), &mut requests)?;
            requests.extend_from_slice(bytes);
        }
        self.stream.write_all(&requests)?;
        for _ in writes {
            let cookie = self.reply()?;
            let index = cookie.wrapping_sub(first).wrapping_sub(1);
            if index >= writes.len() as u64 {
                return Err(garbled("a reply to no request"));
            }
            on_done(usize::try_from(index).expect("checked against a length"));
        }
        Ok(())
    }

    /// Reads `bytes.len()` bytes at `offset`.
    pub(crate) fn read(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.exchange(COMMAND_READ, offset, bytes.len())?;
        self.stream.read_exact(bytes)
    }

    /// Makes everything acknowledged so far durable.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.exchange(COMMAND_FLUSH, 0, 0)
    }

    fn exchange(&mut self, command: u16, offset: u64, length: usize) -> io::Result<()> {
        let mut request = Vec::new();
        self.request(command, offset, length, &mut request)?;
        self.stream.write_all(&request)?;
        let cookie = self.reply()?;
        if cookie == self.cookie { Ok(()) } else { Err(garbled("a reply to no request")) }
    }

    fn request(&mut self, command: u16, offset: u64, length: usize, out: &mut Vec<u8>) -> io::Result<()> {
        let length = u32::try_from(length).map_err(|_| garbled("the request is too long"))?;
        self.cookie += 1;
        out.extend(REQUEST_MAGIC.to_be_bytes());
        out.extend(0u16.to_be_bytes());
        out.extend(command.to_be_bytes());
        out.extend(self.cookie.to_be_bytes());
        out.extend(offset.to_be_bytes());
        out.extend(length.to_be_bytes());
        Ok(())
    }

    fn reply(&mut self) -> io::Result<u64> {
        let (magic, error) =
            (u32::from_be_bytes(take(&mut self.stream)?), u32::from_be_bytes(take(&mut self.stream)?));
        let cookie = u64::from_be_bytes(take(&mut self.stream)?);
        match (magic, error) {
            (REPLY_MAGIC, 0) => Ok(cookie),
            (REPLY_MAGIC, error) => Err(io::Error::from_raw_os_error(i32::try_from(error).unwrap_or(5))),
            _ => Err(garbled("the server's reply is not understood")),
        }
    }
}

impl Drop for NbdClient {
    fn drop(&mut self) {
        let mut request = Vec::new();
        // A courtesy: the server may have gone already.
        if self.request(COMMAND_DISCONNECT, 0, 0, &mut request).is_ok() {
            let _ = self.stream.write_all(&request);
        }
    }
}
