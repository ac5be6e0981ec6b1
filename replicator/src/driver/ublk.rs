//! The volume's device of the kernel's ublk driver, if it has one: taking requests, handing them to the machine,
//! answering them. Making, starting and stopping the device is not done here: see `crate::ublk`.
//!
//! A device is served within one export generation. While the volume is not served, its requests wait here; when
//! the generation is over, they fail, and so does all that comes later.
//!
//! ```text
//!          the export closes                  other generation, told so
//! Serving ------------------> Waiting -----------------------------------> Broken
//!    |    <------------------    |                                           |
//!    |     it opens again        |                                           |
//!    +---------------------------+----- the kernel has taken back all tags --+--> (gone)
//! ```

mod requests;

use std::os::fd::OwnedFd;

use replicator_core::command::AdminError;
use replicator_core::event::Errno;
use replicator_core::units::{Buffer, Instant};

use super::Op;
use super::context::Context;
use super::slab::{Key, Slab};
use crate::frontend::Need;
use crate::latency::Kind;
use crate::ring::UblkQueue;
use crate::ublk::spec;

/// What of a device is told to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UblkStatus {
    /// Its number.
    pub index: u32,
    /// The export generation that it belongs to.
    pub generation: u64,
    /// Whether its requests are carried out now.
    pub is_served: bool,
    /// Whether its requests fail.
    pub is_broken: bool,
}

/// A device to be served.
#[derive(Debug)]
pub(crate) struct NewUblk {
    pub(crate) index: u32,
    pub(crate) generation: u64,
    pub(crate) tags: u16,
    /// Its file, open.
    pub(crate) file: OwnedFd,
}

/// The device, and requests under way.
pub(crate) struct Ublk {
    device: Option<Device>,
    operations: Slab<Operation>,
    /// Names the device, for what outlives it.
    serial: u64,
}

struct Device {
    index: u32,
    generation: u64,
    queue: UblkQueue,
    state: State,
    tags: Vec<Tag>,
    /// Tags that are not [`Tag::Gone`].
    tags_left: usize,
    /// Requests that wait for the export may be begun.
    is_ready: bool,
}

/// See the picture above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Serving,
    Waiting,
    Broken,
}

/// Where a tag is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    /// With the kernel, which brings a request with it.
    Fetching,
    /// Its request waits for the export.
    Held,
    /// Its request waits for memory.
    Parked(Need),
    /// The machine has its request.
    Working(Key),
    /// The kernel has taken it back for good.
    Gone,
}

/// A request that the machine has.
struct Operation {
    /// Of which device.
    serial: u64,
    tag: u16,
    /// What it is, and when it was read.
    kind: Kind,
    began: Instant,
    /// What the kernel is told if it succeeds.
    result: i32,
    /// Where the data of a read is put, and how much.
    read: Option<(Buffer, usize)>,
}

impl Ublk {
    pub(crate) fn new() -> Self {
        Self { device: None, operations: Slab::with_capacity(256), serial: 0 }
    }

    /// What to tell of the device, if there is one.
    pub(crate) fn status(&self) -> Option<UblkStatus> {
        self.device.as_ref().map(|device| UblkStatus {
            index: device.index,
            generation: device.generation,
            is_served: device.state == State::Serving,
            is_broken: device.state == State::Broken,
        })
    }

    /// Whether requests can go on without anything happening first.
    pub(crate) fn is_ready(&self) -> bool {
        self.device.as_ref().is_some_and(|device| device.is_ready)
    }

    /// Begins to serve a device.
    pub(crate) fn attach(&mut self, cx: &mut Context, new: NewUblk) -> Result<String, AdminError> {
        if let Some(device) = &self.device {
            let index = device.index;
            return Err(AdminError::Refused(format!(
                "ublk device {index} is attached already: detach it first"
            )));
        }
        if !cx.machine.is_serving() {
            return Err(AdminError::Refused(
                "it is not served here: make this node primary first".to_owned(),
            ));
        }
        let generation = cx.machine.status().export_generation;
        if generation != new.generation {
            let was = new.generation;
            return Err(AdminError::Refused(format!(
                "ublk device {} belongs to generation {was}, and this is {generation}",
                new.index
            )));
        }
        let queue = UblkQueue::map(new.file, new.tags)
            .map_err(|error| AdminError::Device(format!("ublk device {}: {error}", new.index)))?;
        let tags = queue.tags();
        for tag in 0..tags {
            cx.ring.command(Op::Ublk(tag), &queue, spec::FETCH, spec::io_command(tag, 0));
        }
        self.serial += 1;
        self.device = Some(Device {
            index: new.index,
            generation,
            queue,
            state: State::Serving,
            tags: vec![Tag::Fetching; usize::from(tags)],
            tags_left: usize::from(tags),
            is_ready: false,
        });
        cx.log.line(format_args!("ublk device {} is attached", new.index));
        Ok(format!("ublk device {} is served", new.index))
    }

    /// Fails all requests of a device, now and later, so that it can be stopped.
    pub(crate) fn break_off(&mut self, cx: &mut Context, index: u32) -> Result<String, AdminError> {
        match &self.device {
            Some(device) if device.index == index => {
                self.fail_all(cx, "it is being detached");
                Ok(format!("requests of ublk device {index} fail from now on"))
            }
            _ => Err(AdminError::Refused(format!("ublk device {index} is not served by this volume"))),
        }
    }

    /// The export opened or closed.
    pub(crate) fn serve(&mut self, cx: &mut Context, open: bool) {
        self.check_generation(cx);
        let Some(device) = &mut self.device else { return };
        if device.state == State::Broken {
            return;
        }
        device.state = if open { State::Serving } else { State::Waiting };
        device.is_ready |= open;
    }

    /// Breaks the device if its generation is over.
    pub(crate) fn check_generation(&mut self, cx: &mut Context) {
        let Some(device) = &self.device else { return };
        if device.state != State::Broken && cx.machine.status().export_generation != device.generation {
            self.fail_all(cx, "another node wrote meanwhile, or acknowledged writes may be missing");
        }
    }

    /// Has requests tried again that wait for the export; the machine may have refused some although it is open.
    pub(crate) fn retry_held(&mut self) {
        if let Some(device) = &mut self.device
            && device.state == State::Serving
        {
            device.is_ready |= device.tags.contains(&Tag::Held);
        }
    }

    /// A command on a tag is done: there is a request, or the kernel has taken the tag back.
    pub(crate) fn fetched(&mut self, cx: &mut Context, tag: u16, result: Result<usize, Errno>) {
        let Some(device) = &mut self.device else { return };
        let Err(error) = result else { return self.begin(cx, tag) };
        // Both are said of a device that is being stopped.
        if !matches!(error, Errno(libc::ENODEV | libc::ECANCELED)) {
            let error = crate::device::io_error(error);
            cx.log.line(format_args!("ublk device {}: tag {tag} is lost: {error}", device.index));
        }
        device.tags[usize::from(tag)] = Tag::Gone;
        device.tags_left -= 1;
        if device.tags_left == 0 {
            cx.log.line(format_args!("ublk device {} is detached", device.index));
            self.device = None;
        }
    }

    /// Lets requests go on that waited for the export.
    pub(crate) fn resume(&mut self, cx: &mut Context) {
        let Some(device) = &mut self.device else { return };
        if !std::mem::take(&mut device.is_ready) || device.state != State::Serving {
            return;
        }
        for tag in 0..device.queue.tags() {
            if self.is_at(tag, Tag::Held) {
                self.request(cx, tag);
            }
        }
    }

    /// Lets a request go on that waited for memory; says whether it still does.
    pub(crate) fn resume_parked(&mut self, cx: &mut Context, tag: u16, need: Need) -> bool {
        if !self.is_at(tag, Tag::Parked(need)) {
            return false;
        }
        self.begin(cx, tag);
        self.is_at(tag, Tag::Parked(need))
    }

    fn is_at(&self, tag: u16, place: Tag) -> bool {
        self.device.as_ref().is_some_and(|device| device.tags.get(usize::from(tag)) == Some(&place))
    }

    fn fail_all(&mut self, cx: &mut Context, reason: &str) {
        let Some(device) = &mut self.device else { return };
        if device.state == State::Broken {
            return;
        }
        cx.log.line(format_args!("requests of ublk device {} fail from now on: {reason}", device.index));
        device.state = State::Broken;
        for tag in 0..device.queue.tags() {
            if !matches!(device.tags[usize::from(tag)], Tag::Fetching | Tag::Gone) {
                // What the machine still has of it goes on there, and its answer is dropped.
                device.answer(cx, tag, -libc::EIO);
            }
        }
    }
}

impl Device {
    /// Answers a tag's request and asks for the next one.
    fn answer(&mut self, cx: &mut Context, tag: u16, result: i32) {
        self.tags[usize::from(tag)] = Tag::Fetching;
        cx.ring.command(Op::Ublk(tag), &self.queue, spec::COMMIT_AND_FETCH, spec::io_command(tag, result));
    }
}
