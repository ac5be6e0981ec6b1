//! All NBD connections of a volume: accepting, receiving, parsing, placing payloads, replying, closing. Requests go
//! to the machine as events; what it completes comes back as replies.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nbd_frontend::{Export, Request, Session, Step};
use replicator_core::event::{Errno, Event};
use replicator_core::limits::{FRAME_PAYLOAD_BYTES_MAX, GATHER_BYTES_MAX};
use replicator_core::units::{Instant, RequestId, Span};
use rustix::net::{RecvFlags, Shutdown};
use rustls::ServerConfig;

use super::context::Context;
use super::slab::{Key, Slab};
use super::waiters::Waiter;
use super::{BRANCH, Op};
use crate::branch::serve::Reader;
use crate::device::Kind;
use crate::frontend::{Choice, Client, Life, Need, Operation, Payload, STALL_MS, Stage};
use crate::ring::FileId;
use crate::secure::Secure;
use crate::session;

mod allocation;
mod changes;
mod requests;

/// Connections that may be ending while others have taken their places: not many, since each holds memory until the
/// kernel lets go of it, which takes it a turn.
pub(crate) const ENDING_MAX: u32 = 16;

/// The backing disk, for questions about its holes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskView {
    pub(crate) file: FileId,
    pub(crate) kind: Kind,
}

/// The NBD side of a volume.
pub(crate) struct Clients {
    clients: Slab<Client>,
    operations: Slab<Operation>,
    exports: Vec<Export>,
    disk: DiskView,
    connections_max: usize,
    /// How clients over TCP are made sure of, if they are.
    tls: Option<Arc<ServerConfig>>,
    /// Those with something to send.
    dirty: Vec<Key>,
    /// Those that may go on parsing: they were full, and one of their requests was completed.
    ready: Vec<Key>,
    /// Those who chose a branch, and whose answer to that has not left yet.
    readers: Vec<Key>,
    /// Reused for answers to block status.
    status_reply: Vec<u8>,
    extents: Vec<nbd_frontend::Extent>,
}

/// Whether parsing of a stream can go on at once.
#[derive(PartialEq, Eq)]
enum Flow {
    /// With what has come already.
    On,
    /// Not before something else happens; that is arranged.
    Wait,
}

impl Clients {
    pub(crate) fn new(
        exports: Vec<Export>,
        disk: DiskView,
        connections_max: u32,
        tls: Option<Arc<ServerConfig>>,
    ) -> Self {
        Self {
            clients: Slab::with_capacity(64),
            operations: Slab::with_capacity(1024),
            exports,
            disk,
            connections_max: connections_max as usize,
            tls,
            dirty: Vec::with_capacity(64),
            ready: Vec::with_capacity(64),
            readers: Vec::new(),
            status_reply: Vec::new(),
            extents: Vec::new(),
        }
    }

    /// Clients that come from now on meet this.
    pub(crate) fn set_tls(&mut self, tls: Option<Arc<ServerConfig>>) {
        self.tls = tls;
    }

    /// Connections there are.
    pub(crate) fn len(&self) -> usize {
        self.clients.len()
    }

    /// Whether somebody can go on without anything happening first.
    pub(crate) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The exports as new connections see them.
    pub(crate) fn exports_mut(&mut self) -> &mut Vec<Export> {
        &mut self.exports
    }

    /// A connection was accepted.
    pub(crate) fn accepted(&mut self, cx: &mut Context, socket: OwnedFd, is_tcp: bool) {
        if self.clients.len() >= self.connections_max && !self.make_room(cx) {
            cx.log.line(format_args!(
                "an NBD connection is refused: {} are open, as many as `nbd-connections` allows",
                self.connections_max
            ));
            return;
        }
        if is_tcp {
            // Without it replies would only be slower.
            let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
        }
        let file = match cx.ring.add_file(socket) {
            Ok(file) => file,
            Err((_, error)) => return cx.log.line(format_args!("an NBD connection is refused: {error}")),
        };
        let session = if is_tcp && self.tls.is_some() { Session::requiring_tls() } else { Session::new() };
        match Client::new(&mut cx.ring, file, session, cx.now) {
            Ok(client) => {
                let key = self.clients.insert(client);
                self.advance(cx, key);
            }
            Err(error) => {
                cx.ring.remove_file(file);
                cx.log.line(format_args!("an NBD connection is refused: {error}"));
            }
        }
    }

    /// Ends the oldest connection that has not negotiated; says whether another may take its place. Negotiating takes
    /// milliseconds: whoever sits there does nothing, and must not keep out those who have work.
    fn make_room(&mut self, cx: &mut Context) -> bool {
        let waits = |client: &Client| client.life == Life::Open && !client.is_negotiated;
        let waiting = self.clients.iter().filter(|(_, client)| waits(client));
        // All have the same time to negotiate, so the one whose time ends first is the oldest.
        if let Some(key) = waiting.min_by_key(|(_, client)| client.deadline).map(|(key, _)| key) {
            self.close(cx, key, Some("it did not negotiate, and others want its place".to_owned()));
        }
        let ending = self.clients.iter().filter(|(_, client)| client.life == Life::Closed).count();
        self.clients.len() - ending.min(ENDING_MAX as usize) < self.connections_max
    }

    /// A receive is done.
    pub(crate) fn received(&mut self, cx: &mut Context, key: Key, result: Result<usize, Errno>) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let is_direct = client.secure.is_none();
        let filling = match &mut client.stage {
            Stage::Payload(Payload { filling: Some(filling), .. }) if is_direct => Some(filling),
            _ => None,
        };
        match (result, filling) {
            (Ok(0), _) => {
                client.received_nothing();
                self.close(cx, key, None);
            }
            (Ok(count), Some((_, filled))) => {
                *filled += count;
                client.inbox.received(0);
                self.advance(cx, key);
            }
            (Ok(count), None) => {
                if let Err(error) = client.received(&mut cx.ring, count) {
                    return self.distrust(cx, key, &error.to_string());
                }
                if client.has_tls_to_say() {
                    self.mark_dirty(key);
                }
                self.advance(cx, key);
            }
            (Err(Errno(libc::EINTR | libc::EAGAIN)), _) => {
                client.received_nothing();
                self.advance(cx, key);
            }
            (Err(error), _) => {
                client.received_nothing();
                self.close(cx, key, Some(format!("receiving failed: {}", crate::device::io_error(error))));
            }
        }
    }

    /// A send is done.
    pub(crate) fn sent(&mut self, cx: &mut Context, key: Key, result: Result<usize, Errno>) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let count = match result {
            Ok(count) => count,
            Err(Errno(libc::EINTR | libc::EAGAIN)) => 0,
            Err(_) => {
                client.outbox.failed();
                return self.close(cx, key, None);
            }
        };
        if client.life == Life::Closed {
            client.outbox.failed();
            return self.bury(cx, key);
        }
        let (tag, file) = (Op::ClientSend(key), client.file);
        let releases = match &mut client.secure {
            Some(secure) => secure.sent(&mut cx.ring, tag, file, count, &mut client.outbox),
            None => client.outbox.sent(&mut cx.ring, tag, file, count),
        };
        for buffer in releases {
            client.read_bytes -= buffer.len_bytes();
            cx.give_buffer(buffer);
        }
        if client.is_full || matches!(client.stage, Stage::Securing) {
            client.is_full = false;
            self.ready.push(key);
        }
        // Any progress counts; a client that takes nothing holds memory which others need.
        client.send_deadline = client.outbox.is_sending().then(|| cx.now.plus_ms(STALL_MS));
        self.mark_dirty(key);
        self.finish_if_done(cx, key);
    }

    /// Lets go on who was full and had a request completed.
    pub(crate) fn resume(&mut self, cx: &mut Context) {
        for index in 0..self.ready.len() {
            let key = self.ready[index];
            self.advance(cx, key);
        }
        self.ready.clear();
    }

    /// Lets one go on that waited for memory; says whether it still does.
    pub(crate) fn resume_parked(&mut self, cx: &mut Context, key: Key, need: Need) -> bool {
        let Some(client) = self.clients.get_mut(key) else { return false };
        client.parked = None;
        if is_gone(cx, client) {
            // The client gave up; it may have sent the request again elsewhere.
            self.close(cx, key, None);
            return false;
        }
        self.advance(cx, key);
        self.clients.get(key).is_some_and(|client| client.parked == Some(need))
    }

    /// Sends what there is to say, once per connection.
    pub(crate) fn flush(&mut self, cx: &mut Context) {
        for index in 0..self.dirty.len() {
            let key = self.dirty[index];
            if let Some(client) = self.clients.get_mut(key) {
                client.is_dirty = false;
                if client.life != Life::Closed {
                    client.start(&mut cx.ring, Op::ClientSend(key));
                    if client.outbox.is_sending() {
                        client.send_deadline.get_or_insert(cx.now.plus_ms(STALL_MS));
                    }
                }
            }
        }
        self.dirty.clear();
    }

    /// Closes who takes too long.
    pub(crate) fn expire(&mut self, cx: &mut Context) {
        let now = cx.now;
        let passed = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        let is_waiting = !cx.waiters.is_empty();
        let hoards = |client: &Client| is_waiting && client.hoards(now);
        let late =
            |client: &Client| passed(client.deadline) || passed(client.send_deadline) || hoards(client);
        let late: Vec<Key> =
            self.clients.iter().filter(|(_, client)| late(client)).map(|(key, _)| key).collect();
        for key in late {
            let client = self.clients.get(key).expect("just found");
            let what = if passed(client.send_deadline) {
                "does not take its answers"
            } else if hoards(client) {
                "does not take its answers, and others wait for the memory they lie in"
            } else if client.is_negotiated {
                "sent a part of a request and stalled"
            } else {
                "did not negotiate"
            };
            self.close(cx, key, Some(format!("it {what}")));
        }
    }

    /// Closes all connections to the volume: it is no longer served here.
    pub(crate) fn close_all(&mut self, cx: &mut Context) {
        self.close_those(cx, |choice| *choice == Choice::Volume);
    }

    /// Closes all connections to the frozen export.
    pub(crate) fn close_frozen(&mut self, cx: &mut Context) {
        self.close_those(cx, |choice| *choice == Choice::Frozen);
    }

    /// The next connection whose client chose a branch, once all it was told has left: the socket, the session and what
    /// it sent since, and the branch's name.
    pub(crate) fn next_reader(&mut self, cx: &mut Context) -> Option<(Reader, String)> {
        let at = self.readers.iter().position(|key| {
            let client = self.clients.get(*key);
            client.is_none_or(|client| client.outbox.is_empty() && client.is_quiet())
        })?;
        let key = self.readers.swap_remove(at);
        let client = self.clients.get_mut(key).filter(|client| client.life == Life::Open)?;
        let Choice::Branch(name) = client.choice.clone() else { return None };
        let unread = client.inbox.unread(&cx.ring).to_vec();
        let session = std::mem::take(&mut client.session);
        let socket = cx.ring.file(client.file).try_clone_to_owned();
        // Not shut down: it goes on elsewhere.
        client.life = Life::Closed;
        self.bury(cx, key);
        match socket {
            Ok(socket) => Some((Reader { socket, session, unread }, name)),
            Err(error) => {
                cx.log.line(format_args!("branch {name} cannot be read: {error}"));
                None
            }
        }
    }

    /// The volume has `bytes` from now on.
    pub(crate) fn grow(&mut self, bytes: u64) {
        let chose = |client: &Client| client.is_negotiated && client.choice == Choice::Volume;
        let keys: Vec<Key> =
            self.clients.iter().filter(|(_, client)| chose(client)).map(|(key, _)| key).collect();
        for key in keys {
            self.clients.get_mut(key).expect("it was just there").session.grow(bytes);
        }
    }

    fn close_those(&mut self, cx: &mut Context, which: impl Fn(&Choice) -> bool) {
        let chose = |client: &Client| client.is_negotiated && which(&client.choice);
        let keys: Vec<Key> =
            self.clients.iter().filter(|(_, client)| chose(client)).map(|(key, _)| key).collect();
        for key in keys {
            self.close(cx, key, None);
        }
    }

    fn mark_dirty(&mut self, key: Key) {
        if let Some(client) = self.clients.get_mut(key)
            && !client.is_dirty
        {
            client.is_dirty = true;
            self.dirty.push(key);
        }
    }

    fn park(&mut self, cx: &mut Context, key: Key, need: Need) {
        if let Some(client) = self.clients.get_mut(key)
            && client.parked.is_none()
        {
            client.parked = Some(need);
            cx.waiters.push(Waiter::Client(key), need);
        }
    }

    /// Parses and hands over what has come, then sees to it that more comes.
    fn advance(&mut self, cx: &mut Context, key: Key) {
        while self.step(cx, key) == Flow::On {}
    }

    fn step(&mut self, cx: &mut Context, key: Key) -> Flow {
        let Some(client) = self.clients.get_mut(key) else { return Flow::Wait };
        let is_reader = client.is_negotiated && matches!(client.choice, Choice::Branch(_));
        if client.life != Life::Open || client.parked.is_some() || client.is_receiving() || is_reader {
            return Flow::Wait;
        }
        match client.stage {
            Stage::Header => self.step_header(cx, key),
            Stage::Securing => self.secure(cx, key),
            Stage::Payload(payload) => self.step_payload(cx, key, payload),
            Stage::Blocked(request) => self.request(cx, key, request),
            Stage::Drain { left: 0, reject } => {
                client.stage = Stage::Header;
                self.reply_error(cx, key, reject.tag(), reject.error, reject.reason);
                Flow::On
            }
            Stage::Drain { left, reject } => {
                let unread = client.inbox.unread_bytes() as u64;
                if unread == 0 {
                    client.receive(&mut cx.ring, Op::ClientReceive(key));
                    return Flow::Wait;
                }
                let count = left.min(unread);
                client.inbox.consume(usize::try_from(count).expect("no more than there is"));
                client.stage = Stage::Drain { left: left - count, reject };
                Flow::On
            }
        }
    }

    fn step_header(&mut self, cx: &mut Context, key: Key) -> Flow {
        let client = self.clients.get_mut(key).expect("the caller has it");
        if client.is_laden() {
            client.is_full = true;
            return Flow::Wait;
        }
        // Branches are read from the socket itself, past the reactor and so past TLS.
        let is_branch = |export: &Export| export.name.contains(BRANCH);
        let branches_at = || self.exports.iter().position(is_branch).unwrap_or(self.exports.len());
        let offered = if client.secure.is_some() { branches_at() } else { self.exports.len() };
        let advance = match client.session.advance(client.inbox.unread(&cx.ring), &self.exports[..offered]) {
            Ok(advance) => advance,
            Err(error) => {
                self.close(cx, key, Some(error.to_string()));
                return Flow::Wait;
            }
        };
        client.inbox.consume(advance.consumed);
        match advance.step {
            Step::NeedInput => {
                self.say_output(cx, key);
                self.receive(cx, key);
                Flow::Wait
            }
            Step::SendOutput => {
                self.say_output(cx, key);
                Flow::On
            }
            Step::StartTls if client.inbox.unread_bytes() > 0 => {
                let reason = "it sent something in the clear behind NBD_OPT_STARTTLS".to_owned();
                self.close(cx, key, Some(reason));
                Flow::Wait
            }
            Step::StartTls => {
                client.stage = Stage::Securing;
                self.say_output(cx, key);
                Flow::Wait
            }
            Step::Negotiated => {
                client.negotiated();
                let is_reader = matches!(client.choice, Choice::Branch(_));
                self.say_output(cx, key);
                if is_reader {
                    self.readers.push(key);
                    return Flow::Wait;
                }
                Flow::On
            }
            Step::Request(request) => self.request(cx, key, request),
            Step::Reject(reject) => {
                client.stage = Stage::Drain { left: reject.drain_bytes, reject };
                Flow::On
            }
            Step::Disconnect => {
                self.say_output(cx, key);
                self.clients.get_mut(key).expect("as above").life = Life::Finishing;
                self.finish_if_done(cx, key);
                Flow::Wait
            }
        }
    }

    fn receive(&mut self, cx: &mut Context, key: Key) {
        if let Some(client) = self.clients.get_mut(key)
            && client.life == Life::Open
        {
            client.receive(&mut cx.ring, Op::ClientReceive(key));
        }
    }

    /// Begins TLS once all that was said in the clear has left.
    fn secure(&mut self, cx: &mut Context, key: Key) -> Flow {
        let client = self.clients.get_mut(key).expect("the caller has it");
        if !client.outbox.is_empty() {
            return Flow::Wait;
        }
        let config = Arc::clone(self.tls.as_ref().expect("only then is TLS required"));
        let secure = session::Session::serve(config).map_err(|error| error.to_string()).and_then(|session| {
            Secure::new(&mut cx.ring, session).map_err(|error| format!("no memory: {error}"))
        });
        match secure {
            Ok(secure) => {
                client.secure = Some(secure);
                client.stage = Stage::Header;
                Flow::On
            }
            Err(reason) => {
                self.close(cx, key, Some(reason));
                Flow::Wait
            }
        }
    }

    /// What came in TLS is not a client's of this cluster. Who has not proven anything yet is told why not.
    fn distrust(&mut self, cx: &mut Context, key: Key, reason: &str) {
        let client = self.clients.get_mut(key).expect("the caller has it");
        if !client.is_securing() || !client.has_tls_to_say() {
            return self.close(cx, key, Some(reason.to_owned()));
        }
        cx.log.line(format_args!("an NBD connection is closed: {reason}"));
        client.life = Life::Finishing;
        self.mark_dirty(key);
    }

    fn say_output(&mut self, cx: &mut Context, key: Key) {
        let client = self.clients.get_mut(key).expect("the caller has it");
        match client.take_output(&mut cx.ring) {
            Ok(()) => self.mark_dirty(key),
            Err(error) => self.close(cx, key, Some(format!("no memory: {error}"))),
        }
    }

    /// Begins a write; its payload comes next in the stream.
    fn begin_write(&mut self, cx: &Context, key: Key, request: &Request, fua: bool) -> Flow {
        let operation = self.begin(key, request, cx.now);
        self.operations.get_mut(operation).expect("just made").is_open = true;
        let client = self.clients.get_mut(key).expect("the caller has it");
        let (offset, left) = (request.offset, request.length_bytes);
        client.stage = Stage::Payload(Payload { operation, offset, left, fua, filling: None });
        client.inbox.cautious = left > GATHER_BYTES_MAX as u64;
        Flow::On
    }

    /// Places the next piece of a payload and hands it over as soon as it is there.
    fn step_payload(&mut self, cx: &mut Context, key: Key, payload: Payload) -> Flow {
        let must_queue = cx.waiters.must_queue(Need::Write);
        let client = self.clients.get_mut(key).expect("the caller has it");
        if payload.left == 0 {
            client.stage = Stage::Header;
            let operation = self.operations.get_mut(payload.operation).expect("open");
            operation.is_open = false;
            self.finish_operation(cx, payload.operation);
            return Flow::On;
        }
        if let Some((span, filled)) = payload.filling {
            return self.fill(cx, key, payload, span, filled);
        }
        let len = usize::try_from(payload.left).unwrap_or(usize::MAX).min(FRAME_PAYLOAD_BYTES_MAX);
        let is_small = len <= GATHER_BYTES_MAX;
        if is_small && client.inbox.unread_bytes() < len {
            self.receive(cx, key);
            return Flow::Wait;
        }
        // Whoever waits for memory is not overtaken.
        let placed = if must_queue { None } else { cx.machine.place_write(len) };
        let Some(span) = placed else {
            self.park(cx, key, Need::Write);
            return Flow::Wait;
        };
        assert!(span.len == len, "the machine places what was asked for");
        if is_small {
            client.inbox.copy_to_arena(&mut cx.ring, span);
            self.hand_over(cx, key, payload, span);
        } else {
            client.stage = Stage::Payload(Payload { filling: Some((span, 0)), ..payload });
            client.deadline = Some(cx.now.plus_ms(STALL_MS));
        }
        Flow::On
    }

    /// Fills a large piece: with what has come already, then directly from the socket.
    fn fill(&mut self, cx: &mut Context, key: Key, payload: Payload, span: Span, filled: usize) -> Flow {
        let client = self.clients.get_mut(key).expect("the caller has it");
        let rest = Span { start: span.start + filled, len: span.len - filled };
        let copied = client.inbox.copy_to_arena(&mut cx.ring, rest);
        if copied < rest.len {
            client.stage = Stage::Payload(Payload { filling: Some((span, filled + copied)), ..payload });
            let rest = Span { start: rest.start + copied, len: rest.len - copied };
            if client.secure.is_some() {
                client.receive(&mut cx.ring, Op::ClientReceive(key));
            } else {
                client.inbox.receive_directly(&mut cx.ring, Op::ClientReceive(key), client.file, rest);
            }
            return Flow::Wait;
        }
        self.hand_over(cx, key, payload, span);
        Flow::On
    }

    /// A piece is complete.
    fn hand_over(&mut self, cx: &mut Context, key: Key, payload: Payload, span: Span) {
        let Payload { operation, offset, left, fua, .. } = payload;
        let len = span.len as u64;
        let client = self.clients.get_mut(key).expect("the caller has it");
        // Waiting for memory for the next piece is nothing to blame the client for.
        client.deadline = None;
        client.stage =
            Stage::Payload(Payload { offset: offset + len, left: left - len, filling: None, ..payload });
        let request = self.piece(operation);
        cx.give(Event::Write { request, offset, payload: span, fua });
    }

    /// Names the next piece of an operation.
    fn piece(&mut self, key: Key) -> RequestId {
        let operation = self.operations.get_mut(key).expect("pieces are of an operation under way");
        operation.pieces += 1;
        operation.pieces_left += 1;
        RequestId(u64::from(operation.pieces) << 32 | u64::from(key.index))
    }

    /// Shuts a connection down. Its requests go on in the machine, and their answers are dropped.
    fn close(&mut self, cx: &mut Context, key: Key, reason: Option<String>) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if let Some(reason) = reason {
            cx.log.line(format_args!("an NBD connection is closed: {reason}"));
        }
        if client.life != Life::Closed {
            client.life = Life::Closed;
            client.deadline = None;
            // What is in flight ends with this, one way or the other.
            let _ = rustix::net::shutdown(cx.ring.file(client.file), Shutdown::Both);
        }
        self.bury(cx, key);
    }

    /// Lets a closed connection go once the kernel has no operation of it.
    fn bury(&mut self, cx: &mut Context, key: Key) {
        if !self.clients.get(key).is_some_and(|client| client.life == Life::Closed && client.is_quiet()) {
            return;
        }
        let client = self.clients.remove(key).expect("just seen");
        let payload = match client.stage {
            Stage::Payload(payload) => Some(payload),
            _ => None,
        };
        for buffer in client.release(&mut cx.ring) {
            cx.give_buffer(buffer);
        }
        if let Some(payload) = payload {
            if let Some((span, _)) = payload.filling {
                cx.give(Event::WriteAbandoned { payload: span });
            }
            self.operations.get_mut(payload.operation).expect("open").is_open = false;
            self.finish_operation(cx, payload.operation);
        }
    }

    /// Closes a connection whose client is done, once everything is answered.
    fn finish_if_done(&mut self, cx: &mut Context, key: Key) {
        let done = self.clients.get(key).is_some_and(|client| {
            client.life == Life::Finishing && client.operations == 0 && client.has_said_all()
        });
        if done {
            self.close(cx, key, None);
        }
    }
}

/// Whether the other end of a parked connection is known to be gone.
fn is_gone(cx: &Context, client: &Client) -> bool {
    let mut byte = [0u8; 1];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    matches!(rustix::net::recv(cx.ring.file(client.file), &mut byte, flags), Ok((_, 0)))
}
