//! A small NBD client of our own for the demonstration: fixed newstyle over a unix socket, simple replies,
//! pipelined writes. It shares no code with the server, so that a mistake there is not made twice.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const FLAG_FIXED_NEWSTYLE: u16 = 1;
const FLAG_NO_ZEROES: u16 = 2;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_ERROR_BIT: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
const COMMAND_FLUSH: u16 = 3;
/// Bytes of an option's reply.
const OPTION_REPLY_BYTES_MAX: u32 = 64 << 10;

/// A connection to an export.
#[derive(Debug)]
pub(crate) struct NbdClient {
    stream: UnixStream,
    size_bytes: u64,
    cookie: u64,
    /// Whether requests are understood by now.
    is_transmitting: bool,
}

impl NbdClient {
    /// Connects to the export called `export`. No single read or write on the socket may take longer than `timeout`.
    pub(crate) fn connect(socket: &Path, export: &str, timeout: Duration) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let mut client = Self { stream, size_bytes: 0, cookie: 0, is_transmitting: false };
        client.greet()?;
        client.go(export)?;
        Ok(client)
    }

    /// Bytes of the export.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn greet(&mut self) -> io::Result<()> {
        let (magic, option_magic) = (u64::from_be_bytes(self.take()?), u64::from_be_bytes(self.take()?));
        let flags = u16::from_be_bytes(self.take()?);
        if magic != MAGIC || option_magic != OPTION_MAGIC || flags & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(garbled("the server does not speak fixed newstyle NBD"));
        }
        let flags = u32::from(flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES));
        self.stream.write_all(&flags.to_be_bytes())
    }

    fn go(&mut self, export: &str) -> io::Result<()> {
        let name_bytes = u32::try_from(export.len()).map_err(|_| garbled("the export's name is too long"))?;
        let mut option = Vec::new();
        option.extend(OPTION_MAGIC.to_be_bytes());
        option.extend(OPTION_GO.to_be_bytes());
        option.extend((name_bytes + 6).to_be_bytes());
        option.extend(name_bytes.to_be_bytes());
        option.extend(export.as_bytes());
        option.extend(0u16.to_be_bytes());
        self.stream.write_all(&option)?;
        loop {
            let magic = u64::from_be_bytes(self.take()?);
            let (_option, kind) = (u32::from_be_bytes(self.take()?), u32::from_be_bytes(self.take()?));
            let length_bytes = u32::from_be_bytes(self.take()?);
            if magic != OPTION_REPLY_MAGIC || length_bytes > OPTION_REPLY_BYTES_MAX {
                return Err(garbled("the server's reply to NBD_OPT_GO is not understood"));
            }
            let mut body = vec![0; length_bytes as usize];
            self.stream.read_exact(&mut body)?;
            match kind {
                REPLY_ACK => {
                    self.is_transmitting = true;
                    return Ok(());
                }
                REPLY_INFO if body.len() >= 10 && body[..2] == INFO_EXPORT.to_be_bytes() => {
                    self.size_bytes = u64::from_be_bytes(body[2..10].try_into().expect("eight bytes"));
                }
                kind if kind & REPLY_ERROR_BIT != 0 => {
                    let text = String::from_utf8_lossy(&body);
                    let message = format!("the server refuses the export ({kind:#x}): {text}");
                    return Err(io::Error::new(ErrorKind::ConnectionRefused, message));
                }
                _ => {}
            }
        }
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
        let (magic, error) = (u32::from_be_bytes(self.take()?), u32::from_be_bytes(self.take()?));
        let cookie = u64::from_be_bytes(self.take()?);
        match (magic, error) {
            (REPLY_MAGIC, 0) => Ok(cookie),
            (REPLY_MAGIC, error) => Err(io::Error::from_raw_os_error(i32::try_from(error).unwrap_or(5))),
            _ => Err(garbled("the server's reply is not understood")),
        }
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl Drop for NbdClient {
    fn drop(&mut self) {
        let mut request = Vec::new();
        // A courtesy: the server may have gone already.
        if self.is_transmitting && self.request(COMMAND_DISCONNECT, 0, 0, &mut request).is_ok() {
            let _ = self.stream.write_all(&request);
        }
    }
}

fn garbled(reason: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, reason.to_owned())
}
