//! From a request of the kernel to its answer: events for the machine one way, results the other.

use replicator_core::command::RequestError;
use replicator_core::event::{Event, ZeroKind};
use replicator_core::limits::FRAME_PAYLOAD_BYTES_MAX;
use replicator_core::units::{Buffer, Instant, RequestId, Span};

use super::{Operation, State, Tag, Ublk};
use crate::driver::context::Context;
use crate::driver::slab::Key;
use crate::driver::waiters::Waiter;
use crate::frontend::Need;
use crate::latency::Kind;
use crate::ublk::spec;

/// Marks the requests of the device among all that the machine is given.
const MARK: u64 = 1 << 63;

/// A request, in the words of the machine.
#[derive(Clone, Copy, Debug)]
struct Request {
    tag: u16,
    operation: u32,
    offset: u64,
    len: u64,
    fua: bool,
    no_unmap: bool,
}

impl Ublk {
    /// Whether a request is one of the device.
    pub(crate) fn owns(request: RequestId) -> bool {
        request.0 & MARK != 0
    }

    /// Begins a tag's request, if the device is in a state to.
    pub(super) fn begin(&mut self, cx: &mut Context, tag: u16) {
        let Some(device) = &mut self.device else { return };
        match device.state {
            State::Serving => self.request(cx, tag),
            State::Waiting => device.tags[usize::from(tag)] = Tag::Held,
            State::Broken => device.answer(cx, tag, -libc::EIO),
        }
    }

    /// Carries out a tag's request.
    pub(super) fn request(&mut self, cx: &mut Context, tag: u16) {
        let Some(device) = &mut self.device else { return };
        let descriptor = device.queue.descriptor(tag);
        let request = Request {
            tag,
            operation: descriptor.operation & spec::OPERATION_MASK,
            offset: descriptor.start_sector.saturating_mul(spec::SECTOR_BYTES),
            len: u64::from(descriptor.sectors) * spec::SECTOR_BYTES,
            fua: descriptor.operation & spec::REQUEST_FUA != 0,
            no_unmap: descriptor.operation & spec::REQUEST_NO_UNMAP != 0,
        };
        match request.operation {
            spec::OPERATION_READ => self.read(cx, request),
            spec::OPERATION_WRITE => self.write(cx, request),
            spec::OPERATION_FLUSH => {
                let request = self.take(cx.now, request, 0, None);
                cx.give(Event::Flush { request });
            }
            spec::OPERATION_DISCARD => self.zero(cx, request, ZeroKind::Trim),
            spec::OPERATION_WRITE_ZEROES if request.no_unmap => self.zero(cx, request, ZeroKind::Zeroes),
            spec::OPERATION_WRITE_ZEROES => self.zero(cx, request, ZeroKind::Trim),
            _ => device.answer(cx, tag, -libc::EOPNOTSUPP),
        }
    }

    fn read(&mut self, cx: &mut Context, request: Request) {
        let Some(len) = payload_len(request) else { return self.refuse(cx, request.tag) };
        // Whoever waits for memory is not overtaken.
        let must_queue = cx.waiters.must_queue(Need::Read);
        let buffer = if must_queue { None } else { cx.machine.take_buffer(len) };
        let Some(buffer) = buffer else { return self.park(cx, request.tag, Need::Read) };
        let destination = Span { start: buffer.start(), len };
        let offset = request.offset;
        let request = self.take(cx.now, request, result_of(len), Some((buffer, len)));
        cx.give(Event::Read { request, offset, destination });
    }

    fn write(&mut self, cx: &mut Context, request: Request) {
        let Some(len) = payload_len(request) else { return self.refuse(cx, request.tag) };
        let must_queue = cx.waiters.must_queue(Need::Write);
        let placed = if must_queue { None } else { cx.machine.place_write(len) };
        let Some(payload) = placed else { return self.park(cx, request.tag, Need::Write) };
        let device = self.device.as_mut().expect("the caller has it");
        if cx.ring.read_payload(&device.queue, spec::payload_at(request.tag), payload) != Ok(len) {
            cx.give(Event::WriteAbandoned { payload });
            return device.answer(cx, request.tag, -libc::EIO);
        }
        let (offset, fua) = (request.offset, request.fua);
        let request = self.take(cx.now, request, result_of(len), None);
        cx.give(Event::Write { request, offset, payload, fua });
    }

    fn zero(&mut self, cx: &mut Context, request: Request, kind: ZeroKind) {
        let Request { offset, len: length, fua, .. } = request;
        let request = self.take(cx.now, request, 0, None);
        cx.give(Event::Zero { request, offset, length, kind, fua });
    }

    /// Takes note of a request that the machine is given.
    fn take(
        &mut self,
        now: Instant,
        request: Request,
        result: i32,
        read: Option<(Buffer, usize)>,
    ) -> RequestId {
        let kind = match request.operation {
            spec::OPERATION_READ => Kind::Read,
            spec::OPERATION_FLUSH => Kind::Flush,
            _ => Kind::Write,
        };
        let operation = Operation { serial: self.serial, tag: request.tag, kind, began: now, result, read };
        let key = self.operations.insert(operation);
        let device = self.device.as_mut().expect("its request was just read");
        device.tags[usize::from(request.tag)] = Tag::Working(key);
        RequestId(MARK | u64::from(key.index))
    }

    fn park(&mut self, cx: &mut Context, tag: u16, need: Need) {
        self.device.as_mut().expect("its request was just read").tags[usize::from(tag)] = Tag::Parked(need);
        cx.waiters.push(Waiter::Ublk(tag), need);
    }

    fn refuse(&mut self, cx: &mut Context, tag: u16) {
        self.device.as_mut().expect("its request was just read").answer(cx, tag, -libc::EINVAL);
    }

    /// The machine has completed a request.
    pub(crate) fn completed(
        &mut self,
        cx: &mut Context,
        request: RequestId,
        result: Result<(), RequestError>,
    ) {
        let index = u32::try_from(request.0 & u64::from(u32::MAX)).expect("masked");
        let key = self.operations.key_at(index).expect("a request is completed once, and while it lasts");
        let operation = self.operations.remove(key).expect("just found");
        if result.is_ok() {
            cx.latencies.note(operation.kind, operation.began, cx.now);
        }
        if operation.serial == self.serial && self.is_at(operation.tag, Tag::Working(key)) {
            self.finish(cx, &operation, key, result);
        }
        if let Some((buffer, _)) = operation.read {
            cx.give_buffer(buffer);
        }
    }

    fn finish(
        &mut self,
        cx: &mut Context,
        operation: &Operation,
        key: Key,
        result: Result<(), RequestError>,
    ) {
        let tag = operation.tag;
        let device = self.device.as_mut().expect("it has the tag");
        assert!(device.tags[usize::from(tag)] == Tag::Working(key), "the caller has looked");
        let answer = match result {
            // Not now, or by a reign that is over: it is tried again when the volume is served, since the kernel has
            // the payload as long as there is no answer.
            _ if device.state != State::Serving => return device.tags[usize::from(tag)] = Tag::Held,
            Err(RequestError::NotServing) => return device.tags[usize::from(tag)] = Tag::Held,
            Err(RequestError::Device) => -libc::EIO,
            Err(RequestError::Range) => -libc::EINVAL,
            Ok(()) => match operation.read {
                Some((buffer, len)) => {
                    let span = Span { start: buffer.start(), len };
                    let written = cx.ring.write_payload(&device.queue, spec::payload_at(tag), span);
                    if written == Ok(len) { operation.result } else { -libc::EIO }
                }
                None => operation.result,
            },
        };
        device.answer(cx, tag, answer);
    }
}

/// Bytes of a read or write; the kernel was told how long one may be.
fn payload_len(request: Request) -> Option<usize> {
    usize::try_from(request.len).ok().filter(|len| (1..=FRAME_PAYLOAD_BYTES_MAX).contains(len))
}

/// What the kernel is told of a read or write that was done.
fn result_of(len: usize) -> i32 {
    i32::try_from(len).expect("at most a frame")
}
