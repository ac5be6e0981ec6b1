//! The reactor's end of the control channel: taking requests of other threads, remembering whom to answer.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc;

use replicator_core::command::AdminError;
use replicator_core::units::AdminId;

use super::Op;
use super::handle::Request;
use crate::ring::{FileId, MemoryId, Ring};

/// What an operator's request is answered with.
pub(crate) type Answer = Result<String, AdminError>;

/// The channel and those who wait for an answer.
pub(crate) struct Control {
    requests: mpsc::Receiver<Request>,
    wake: FileId,
    wake_memory: MemoryId,
    waiting: Vec<(AdminId, mpsc::Sender<Answer>)>,
    next_id: u64,
}

impl Control {
    pub(crate) fn new(
        ring: &mut Ring<Op>,
        requests: mpsc::Receiver<Request>,
        wake: OwnedFd,
    ) -> io::Result<Self> {
        let wake_memory = ring.add_memory(8)?;
        let wake = ring.add_file(wake).map_err(|(_, error)| error)?;
        ring.read_wakeups(Op::Wake, wake, wake_memory);
        Ok(Self { requests, wake, wake_memory, waiting: Vec::new(), next_id: 1 })
    }

    /// Somebody has something to say: listens for the next wake-up first, so that none is lost.
    pub(crate) fn woken(&mut self, ring: &mut Ring<Op>) {
        ring.read_wakeups(Op::Wake, self.wake, self.wake_memory);
    }

    /// The next request.
    pub(crate) fn next(&self) -> Option<Request> {
        self.requests.try_recv().ok()
    }

    /// Remembers whom to answer.
    pub(crate) fn expect(&mut self, answer: mpsc::Sender<Answer>) -> AdminId {
        let id = AdminId(self.next_id);
        self.next_id += 1;
        self.waiting.push((id, answer));
        id
    }

    /// Answers; whoever asked may have gone.
    pub(crate) fn answer(&mut self, id: AdminId, answer: Answer) {
        if let Some(index) = self.waiting.iter().position(|(waiting, _)| *waiting == id) {
            let _ = self.waiting.swap_remove(index).1.send(answer);
        }
    }
}
