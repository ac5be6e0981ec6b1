//! From a request that may be carried out to its reply: events for the machine one way, encoded replies the other.

use nbd_frontend::{
    Command, ContextKind, ERROR_BYTES_MAX, NbdError, OK_BYTES_MAX, READ_HEADER_BYTES_MAX, ReplyTag, Request,
};
use replicator_core::command::RequestError;
use replicator_core::event::{Event, ZeroKind};
use replicator_core::limits::FRAME_PAYLOAD_BYTES_MAX;
use replicator_core::units::{Instant, PAGE_BYTES, RequestId};

use super::{Clients, Flow, allocation, changes};
use crate::driver::context::Context;
use crate::driver::slab::Key;
use crate::frontend::{Choice, Life, Need, Operation, Read, Stage};
use crate::latency::Kind;

impl Clients {
    /// Carries out a request that the session has judged.
    pub(super) fn request(&mut self, cx: &mut Context, key: Key, request: Request) -> Flow {
        let client = self.clients.get_mut(key).expect("the caller has it");
        client.stage = Stage::Header;
        if !matches!(request.command, Command::Write { .. }) {
            client.inbox.cautious = false;
        }
        match request.command {
            Command::Write { fua } => return self.begin_write(cx, key, &request, fua),
            Command::Read { .. } => return self.begin_read(cx, key, request),
            Command::Flush if self.is_frozen(key) => self.reply_ok(cx, key, request.tag()),
            Command::Flush => {
                let operation = self.begin(key, &request, cx.now);
                let request = self.piece(operation);
                cx.give(Event::Flush { request });
            }
            Command::Trim { fua } => self.begin_zero(cx, key, &request, ZeroKind::Trim, fua),
            Command::WriteZeroes { fua, no_hole, .. } => {
                let kind = if no_hole { ZeroKind::Zeroes } else { ZeroKind::Trim };
                self.begin_zero(cx, key, &request, kind, fua);
            }
            Command::Cache => self.reply_ok(cx, key, request.tag()),
            Command::BlockStatus { .. } => self.reply_status(cx, key, &request),
        }
        Flow::On
    }

    /// Takes note of a request that will be answered later.
    pub(super) fn begin(&mut self, key: Key, request: &Request, now: Instant) -> Key {
        self.clients.get_mut(key).expect("the caller has it").operations += 1;
        let kind = match request.command {
            Command::Read { .. } => Kind::Read,
            Command::Flush => Kind::Flush,
            _ => Kind::Write,
        };
        self.operations.insert(Operation {
            client: key,
            kind,
            began: now,
            tag: request.tag(),
            pieces_left: 0,
            pieces: 0,
            is_open: false,
            error: None,
            read: None,
        })
    }

    /// Whether the client reads what the volume held at one position.
    fn is_frozen(&self, key: Key) -> bool {
        self.clients.get(key).is_some_and(|client| client.choice == Choice::Frozen)
    }

    fn begin_zero(&mut self, cx: &mut Context, key: Key, request: &Request, kind: ZeroKind, fua: bool) {
        let operation = self.begin(key, request, cx.now);
        let (offset, length) = (request.offset, request.length_bytes);
        let request = self.piece(operation);
        cx.give(Event::Zero { request, offset, length, kind, fua });
    }

    fn begin_read(&mut self, cx: &mut Context, key: Key, request: Request) -> Flow {
        // Whoever waits for memory is not overtaken, or a long read would wait for ever.
        let read = if cx.waiters.must_queue(Need::Read) { None } else { take_read(cx, request.length_bytes) };
        let Some(read) = read else {
            self.clients.get_mut(key).expect("the caller has it").stage = Stage::Blocked(request);
            self.park(cx, key, Need::Read);
            return Flow::Wait;
        };
        let operation = self.begin(key, &request, cx.now);
        self.clients.get_mut(key).expect("the caller has it").read_bytes += read.buffer_bytes();
        // The machine may complete a piece at once: all are named before the first is handed over.
        let pieces = 1 + read.rest.len();
        let ids: Vec<RequestId> = (1..pieces).map(|_| self.piece(operation)).collect();
        let last = self.piece(operation);
        let mut offset = request.offset;
        let is_frozen = self.is_frozen(key);
        for ((destination, _), request) in read.pieces().zip(ids.into_iter().chain([last])) {
            cx.give(if is_frozen {
                Event::ReadFrozen { request, offset, destination }
            } else {
                Event::Read { request, offset, destination }
            });
            offset += destination.len as u64;
        }
        self.operations.get_mut(operation).expect("completions come as commands, later").read = Some(read);
        Flow::On
    }

    /// The machine has completed a piece of a request.
    pub(crate) fn completed(
        &mut self,
        cx: &mut Context,
        request: RequestId,
        result: Result<(), RequestError>,
    ) {
        let index = u32::try_from(request.0 & u64::from(u32::MAX)).expect("masked");
        let key = self.operations.key_at(index).expect("a request is completed once, and while it lasts");
        let operation = self.operations.get_mut(key).expect("just found");
        operation.pieces_left -= 1;
        if let Err(error) = result {
            operation.error.get_or_insert(error);
        }
        self.finish_operation(cx, key);
    }

    /// Replies, if the request is done in all its pieces.
    pub(super) fn finish_operation(&mut self, cx: &mut Context, key: Key) {
        let operation = self.operations.get(key).expect("the caller has it");
        if operation.pieces_left > 0 || operation.is_open {
            return;
        }
        let operation = self.operations.remove(key).expect("as above");
        let client = self.clients.get_mut(operation.client).filter(|client| client.life != Life::Closed);
        let Some(client) = client else {
            return give_read(cx, operation.read);
        };
        client.operations -= 1;
        if client.is_full {
            client.is_full = false;
            self.ready.push(operation.client);
        }
        if operation.error.is_none() {
            cx.latencies.note(operation.kind, operation.began, cx.now);
        }
        match (operation.error, operation.read) {
            (None, None) => self.reply_ok(cx, operation.client, operation.tag),
            (None, Some(read)) => self.reply_read(cx, operation.client, operation.tag, &read),
            (Some(error), read) => {
                client.read_bytes -= read.as_ref().map_or(0, Read::buffer_bytes);
                give_read(cx, read);
                let (code, reason) = (nbd_error(error), error.to_string());
                self.reply_error(cx, operation.client, operation.tag, code, &reason);
            }
        }
        self.finish_if_done(cx, operation.client);
    }

    fn reply_ok(&mut self, cx: &mut Context, key: Key, tag: ReplyTag) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let mut bytes = [0; OK_BYTES_MAX];
        let len = client.format.encode_ok(tag, &mut bytes);
        self.say(cx, key, &bytes[..len]);
    }

    pub(super) fn reply_error(
        &mut self,
        cx: &mut Context,
        key: Key,
        tag: ReplyTag,
        error: NbdError,
        reason: &str,
    ) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let mut bytes = [0; ERROR_BYTES_MAX];
        let len = client.format.encode_error(tag, error, reason, &mut bytes);
        self.say(cx, key, &bytes[..len]);
    }

    /// Puts the header right in front of the data, so that both leave as one piece.
    fn reply_read(&mut self, cx: &mut Context, key: Key, tag: ReplyTag, read: &Read) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let mut header = [0; READ_HEADER_BYTES_MAX];
        let len = client.format.encode_read_header(tag, read.length, &mut header);
        for (index, (mut span, buffer)) in read.pieces().enumerate() {
            if index == 0 {
                span.start -= len;
                span.len += len;
                cx.ring.arena_mut()[span.start..span.start + len].copy_from_slice(&header[..len]);
            }
            client.outbox.attach(span);
            client.outbox.release_later(buffer);
        }
        self.mark_dirty(key);
    }

    fn reply_status(&mut self, cx: &mut Context, key: Key, request: &Request) {
        let Some(negotiated) = self.clients.get(key).and_then(|client| client.session.negotiated()) else {
            return;
        };
        let (format, contexts) = (negotiated.format, negotiated.contexts.clone());
        let mut reply = std::mem::take(&mut self.status_reply);
        reply.clear();
        for (index, context) in contexts.iter().enumerate() {
            self.extents.clear();
            match &context.kind {
                ContextKind::Allocation => self.find_allocation(cx, key, request),
                ContextKind::Dirty(bookmark) => {
                    if let Some(bookmark) = cx.machine.bookmark(bookmark) {
                        changes::extents(
                            bookmark.map(),
                            request.offset,
                            request.length_bytes,
                            &mut self.extents,
                        );
                    }
                }
            }
            let is_last = index + 1 == contexts.len();
            format.encode_block_status(request, context, is_last, self.extents.iter().copied(), &mut reply);
        }
        self.say(cx, key, &reply);
        self.status_reply = reply;
    }

    /// Looks for holes of the disk.
    fn find_allocation(&mut self, cx: &mut Context, key: Key, request: &Request) {
        // Holes of the disk are holes of the volume only while nothing waits to be applied. To know nothing and
        // say "data" is always right.
        let status = cx.machine.status();
        let is_all_applied = status.applied == status.head.sequence && status.applied == status.journaled;
        if is_all_applied || self.is_frozen(key) {
            let file = cx.ring.file(self.disk.file);
            allocation::extents(
                file,
                self.disk.kind,
                request.offset,
                request.length_bytes,
                &mut self.extents,
            );
        }
    }

    fn say(&mut self, cx: &mut Context, key: Key, bytes: &[u8]) {
        let client = self.clients.get_mut(key).expect("the caller has it");
        match client.outbox.say(&mut cx.ring, bytes) {
            Ok(()) => self.mark_dirty(key),
            Err(error) => self.close(cx, key, Some(format!("no memory: {error}"))),
        }
    }
}

/// Memory for a read: a page for the header and the first piece, then further pieces, all or nothing.
fn take_read(cx: &mut Context, length: u64) -> Option<Read> {
    let mut left = usize::try_from(length).ok()?;
    let first_len = left.min(FRAME_PAYLOAD_BYTES_MAX);
    let first = (cx.machine.take_buffer(PAGE_BYTES + first_len)?, first_len);
    left -= first_len;
    let mut read = Read { length, first, rest: Vec::new() };
    while left > 0 {
        let len = left.min(FRAME_PAYLOAD_BYTES_MAX);
        let Some(buffer) = cx.machine.take_buffer(len) else {
            // Not through the context: for those who wait nothing has changed.
            read.pieces().for_each(|(_, buffer)| cx.machine.give_buffer(buffer));
            return None;
        };
        read.rest.push((buffer, len));
        left -= len;
    }
    Some(read)
}

fn give_read(cx: &mut Context, read: Option<Read>) {
    let Some(read) = read else { return };
    for (_, buffer) in read.pieces() {
        cx.give_buffer(buffer);
    }
}

fn nbd_error(error: RequestError) -> NbdError {
    match error {
        RequestError::NotServing => NbdError::Shutdown,
        RequestError::Device => NbdError::Io,
        RequestError::Range => NbdError::Invalid,
    }
}
