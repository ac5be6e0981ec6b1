//! A branch over NBD: once a client has chosen it, its connection leaves the reactor and is served by a thread of its
//! own, with blocking calls. It is read-only; what is not kept reads as zeros and is a hole in `base:allocation`.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nbd_frontend::{
    Command, ERROR_BYTES_MAX, Extent, NbdError, OK_BYTES_MAX, READ_HEADER_BYTES_MAX, ReplyFormat, Request,
    Session, Step,
};
use replicator_core::dirty::BLOCK_BYTES;

use super::{Branch, Branches};

/// Connections that read branches at one time.
const READERS_MAX: usize = 8;
/// A reader that takes no answers for so long is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of the stream read at a time.
const INPUT_BYTES: usize = 64 << 10;

/// A connection whose client has chosen a branch.
pub(crate) struct Reader {
    /// The socket, with nothing under way on it.
    pub(crate) socket: std::os::fd::OwnedFd,
    /// Its session, past the handshake.
    pub(crate) session: Session,
    /// What came behind the handshake.
    pub(crate) unread: Vec<u8>,
}

/// How many readers there are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Readers(Arc<AtomicUsize>);

struct Seat(Arc<AtomicUsize>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Readers {
    /// Serves `reader` the branch `name` on a thread of its own, until it goes.
    ///
    /// # Errors
    /// If there are too many readers, or the branch cannot be read; the connection ends then.
    pub(crate) fn serve(&self, reader: Reader, branches: &Branches, name: &str) -> io::Result<()> {
        let seat = Seat(Arc::clone(&self.0));
        if self.0.fetch_add(1, Ordering::Relaxed) >= READERS_MAX {
            return Err(io::Error::other(format!("{READERS_MAX} connections read branches already")));
        }
        let branch = branches.open(name)?;
        rustix::io::ioctl_fionbio(&reader.socket, false)?;
        // A stream socket is one to read and write, whatever its family.
        let stream = UnixStream::from(reader.socket);
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let (session, unread) = (reader.session, reader.unread);
        let body = move || {
            let _seat = seat;
            // A client that goes is no failure of ours.
            let _ = Connection { stream, session, branch }.run(unread);
        };
        std::thread::Builder::new().name("hf-branch".to_owned()).spawn(body)?;
        Ok(())
    }
}

struct Connection {
    stream: UnixStream,
    session: Session,
    branch: Branch,
}

impl Connection {
    fn run(&mut self, mut input: Vec<u8>) -> io::Result<()> {
        let mut piece = vec![0; INPUT_BYTES];
        loop {
            let advance = self.session.advance(&input, &[]).map_err(io::Error::other)?;
            input.drain(..advance.consumed);
            match advance.step {
                Step::NeedInput => {
                    let count = self.stream.read(&mut piece)?;
                    if count == 0 {
                        return Ok(());
                    }
                    input.extend_from_slice(&piece[..count]);
                }
                Step::Request(request) => self.answer(&request)?,
                Step::Reject(reject) => {
                    self.drain(&mut input, reject.drain_bytes)?;
                    self.refuse(reject.tag(), reject.error, reject.reason)?;
                }
                Step::Disconnect => return Ok(()),
                Step::SendOutput | Step::StartTls | Step::Negotiated => {
                    unreachable!("the handshake was over before the connection came here")
                }
            }
        }
    }

    fn format(&self) -> ReplyFormat {
        self.session.negotiated().expect("it came here negotiated").format
    }

    fn drain(&mut self, input: &mut Vec<u8>, bytes: u64) -> io::Result<()> {
        let held = input.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
        input.drain(..held);
        let rest = bytes - held as u64;
        let drained = io::copy(&mut (&self.stream).take(rest), &mut io::sink())?;
        if drained < rest { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    fn refuse(&mut self, tag: nbd_frontend::ReplyTag, error: NbdError, reason: &str) -> io::Result<()> {
        let mut bytes = [0; ERROR_BYTES_MAX];
        let len = self.format().encode_error(tag, error, reason, &mut bytes);
        self.stream.write_all(&bytes[..len])
    }

    fn answer(&mut self, request: &Request) -> io::Result<()> {
        match request.command {
            Command::Read { .. } => self.read(request),
            Command::BlockStatus { .. } => {
                let mut reply = Vec::new();
                let format = self.format();
                let negotiated = self.session.negotiated().expect("it came here negotiated");
                // A branch has no bookmarks, and so one context.
                for context in &negotiated.contexts {
                    let extents = extents(&self.branch, request.offset, request.length_bytes);
                    format.encode_block_status(request, context, true, extents, &mut reply);
                }
                self.stream.write_all(&reply)
            }
            Command::Flush | Command::Cache => {
                let mut bytes = [0; OK_BYTES_MAX];
                let len = self.format().encode_ok(request.tag(), &mut bytes);
                self.stream.write_all(&bytes[..len])
            }
            Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. } => {
                unreachable!("a session refuses them on a read-only export")
            }
        }
    }

    fn read(&mut self, request: &Request) -> io::Result<()> {
        let mut header = [0; READ_HEADER_BYTES_MAX];
        let head = self.format().encode_read_header(request.tag(), request.length_bytes, &mut header);
        let mut reply = header[..head].to_vec();
        let length = usize::try_from(request.length_bytes).map_err(io::Error::other)?;
        reply.resize(head + length, 0);
        match read_range(&self.branch, request.offset, &mut reply[head..]) {
            Ok(()) => self.stream.write_all(&reply),
            Err(error) => self.refuse(request.tag(), NbdError::Io, &error.to_string()),
        }
    }
}

/// Reads any range, block by block.
fn read_range(branch: &Branch, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    let mut block = [0; BLOCK_BYTES as usize];
    let mut done = 0;
    while done < bytes.len() {
        let at = offset + done as u64;
        let (index, skip) = (at / BLOCK_BYTES, usize::try_from(at % BLOCK_BYTES).expect("in a block"));
        let whole = BLOCK_BYTES.min(branch.info.volume_bytes - index * BLOCK_BYTES);
        let block = &mut block[..usize::try_from(whole).expect("a block")];
        branch.read_block(index, block)?;
        let len = (block.len() - skip).min(bytes.len() - done);
        bytes[done..done + len].copy_from_slice(&block[skip..skip + len]);
        done += len;
    }
    Ok(())
}

/// What is kept is data; what is not is a hole.
fn extents(branch: &Branch, offset: u64, length: u64) -> Vec<Extent> {
    let end = offset + length;
    let mut extents = Vec::new();
    let mut at = offset;
    while at < end && extents.len() < nbd_frontend::EXTENTS_MAX {
        let next = (at / BLOCK_BYTES + 1) * BLOCK_BYTES;
        let hole = !branch.keeps(at / BLOCK_BYTES);
        extents.push(Extent::allocation(next.min(end) - at, hole, hole));
        at = next;
    }
    extents
}
