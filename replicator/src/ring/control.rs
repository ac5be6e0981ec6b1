//! A ring for one command at a time on a driver's control device: for ublk, whose commands are larger than those of
//! the data path and may take their time. Whoever gives one waits for it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

/// Bytes of a command besides its number.
pub(crate) const COMMAND_BYTES: usize = 80;

/// The control device of a driver.
pub(crate) struct ControlRing {
    uring: IoUring<squeue::Entry128, cqueue::Entry>,
    file: OwnedFd,
    /// Numbers commands: the completion of one that was given up may still come.
    given: u64,
}

impl ControlRing {
    pub(crate) fn new(file: OwnedFd) -> io::Result<Self> {
        Ok(Self { uring: IoUring::builder().build(4)?, file, given: 0 })
    }

    /// Gives the command and waits for it at most so long. `encode` makes it from the address of `buffer`, which the
    /// driver reads or fills.
    pub(crate) fn command(
        &mut self,
        number: u32,
        mut buffer: Vec<u8>,
        encode: impl FnOnce(u64) -> [u8; COMMAND_BYTES],
        limit: Duration,
    ) -> io::Result<Vec<u8>> {
        let bytes = encode(buffer.as_mut_ptr().expose_provenance() as u64);
        let entry = opcode::UringCmd80::new(Fd(self.file.as_raw_fd()), number).cmd(bytes).build();
        self.given += 1;
        let entry = entry.user_data(self.given);
        // SAFETY: the buffer stays where it is until the completion, or for ever: see below.
        unsafe { self.uring.submission().push(&entry) }.expect("one command at a time");
        let end = Instant::now() + limit;
        loop {
            let given = self.given;
            if let Some(done) = self.uring.completion().find(|done| done.user_data() == given) {
                return if done.result() < 0 {
                    Err(io::Error::from_raw_os_error(-done.result()))
                } else {
                    Ok(buffer)
                };
            }
            let left = end.saturating_duration_since(Instant::now());
            let timespec = Timespec::from(left);
            let waited = self.uring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timespec));
            let is_over = match waited {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => false,
                Err(error) if error.raw_os_error() == Some(libc::ETIME) => left.is_zero(),
                Err(error) => {
                    std::mem::forget(buffer);
                    return Err(error);
                }
            };
            if is_over {
                // The driver may still write to it.
                std::mem::forget(buffer);
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}
