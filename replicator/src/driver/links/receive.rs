//! Taking messages and frames off a link's stream. A frame goes straight into the buffer the machine gives for it;
//! everything else is small and is read where it came in.

use super::*;

/// A frame with more than this left is received directly; less comes cheaper with whatever follows it.
const DIRECT_BYTES_MIN: usize = 16 << 10;
/// After a frame of at least this many bytes the next receive is cautious.
const LARGE_BYTES: usize = 64 << 10;

/// Whether parsing of a stream can go on at once.
#[derive(PartialEq, Eq)]
enum Flow {
    On,
    Wait,
}

impl Links {
    /// A receive is done.
    pub(crate) fn received(&mut self, cx: &mut Context, key: Key, result: Result<usize, Errno>) {
        let Some(link) = self.links.get_mut(key) else { return };
        let is_closing = matches!(link.phase, Phase::Closing { .. });
        match result {
            Ok(count) if count > 0 && !is_closing => {
                match &mut link.incoming {
                    Some(incoming) if incoming.is_direct => {
                        incoming.is_direct = false;
                        incoming.filled += count;
                        link.inbox.received(0);
                    }
                    _ => {
                        if let Err(error) = link.received(&mut cx.ring, count) {
                            return self.part(cx, key, &error.to_string());
                        }
                        if !link.has_said_all() {
                            self.mark_dirty(key);
                        }
                    }
                }
                self.advance(cx, key);
            }
            Ok(0) if !is_closing => {
                link.received_nothing();
                self.close(cx, key, "the peer closed the connection");
            }
            Err(Errno(libc::EINTR | libc::EAGAIN)) if !is_closing => {
                link.received_nothing();
                self.advance(cx, key);
            }
            Err(error) if !is_closing => {
                link.received_nothing();
                self.close(cx, key, &format!("receiving failed: {}", io_error(error)));
            }
            _ => {
                link.received_nothing();
                self.bury(cx, key);
            }
        }
    }

    /// Lets go on the links that waited for memory.
    pub(crate) fn resume(&mut self, cx: &mut Context) {
        // Who still has to wait enters the list anew.
        let mut waiting = std::mem::replace(&mut self.parked, std::mem::take(&mut self.parked_before));
        for key in waiting.drain(..) {
            if let Some(link) = self.links.get_mut(key) {
                link.is_parked = false;
                self.advance(cx, key);
            }
        }
        self.parked_before = waiting;
    }

    pub(super) fn advance(&mut self, cx: &mut Context, key: Key) {
        while self.step(cx, key) == Flow::On {}
    }

    fn step(&mut self, cx: &mut Context, key: Key) -> Flow {
        let Some(link) = self.links.get_mut(key) else { return Flow::Wait };
        if link.is_parked || link.is_receiving() {
            return Flow::Wait;
        }
        match (&link.phase, link.incoming) {
            (Phase::Connecting | Phase::Closing { .. }, _) => Flow::Wait,
            (Phase::Securing, _) => self.step_session(cx, key),
            (Phase::Proving(_), _) => self.step_proof(cx, key),
            (Phase::Up, Some(incoming)) => self.step_frame(cx, key, incoming),
            (Phase::Up, None) => self.step_message(cx, key),
        }
    }

    fn step_session(&mut self, cx: &mut Context, key: Key) -> Flow {
        let link = self.links.get_mut(key).expect("the caller has it");
        let (Some(secure), Some(identity)) = (&link.secure, &self.identity) else { return Flow::Wait };
        if !secure.session.is_open() {
            return self.more(cx, key);
        }
        match secure.session.peer(identity, self.peers.iter().copied()) {
            Ok(_) => {
                self.prove(cx, key);
                Flow::On
            }
            Err(error) => {
                self.close(cx, key, &error.to_string());
                Flow::Wait
            }
        }
    }

    fn step_proof(&mut self, cx: &mut Context, key: Key) -> Flow {
        let link = self.links.get_mut(key).expect("the caller has it");
        let Phase::Proving(handshake) = &mut link.phase else { return Flow::Wait };
        match handshake.advance(link.inbox.unread(&cx.ring)) {
            Ok(Progress::Wait) => self.more(cx, key),
            Ok(Progress::Step { consumed, say, done }) => {
                link.inbox.consume(consumed);
                link.proven_with = handshake.proven_with();
                if let Some(say) = say {
                    self.say(cx, key, say.bytes());
                }
                if done {
                    self.up(cx, key);
                }
                Flow::On
            }
            Err(error) => {
                self.close(cx, key, &error.to_string());
                Flow::Wait
            }
        }
    }

    /// Both ends have proven the secret.
    fn up(&mut self, cx: &mut Context, key: Key) {
        let Some(link) = self.links.get_mut(key) else { return };
        if !link.is_unproven() {
            return;
        }
        link.phase = Phase::Up;
        link.was_up = true;
        link.up_since = Some(cx.now);
        link.deadline = None;
        let (link, peer) = (link.id, link.peer);
        if let Some(dial) = self.dials.iter_mut().find(|dial| Some(dial.node) == peer) {
            dial.logged = None;
        }
        cx.give(Event::LinkUp { link, peer });
    }

    fn more(&mut self, cx: &mut Context, key: Key) -> Flow {
        let link = self.links.get_mut(key).expect("the caller has it");
        link.receive(&mut cx.ring, Op::LinkReceive(key));
        Flow::Wait
    }

    fn step_message(&mut self, cx: &mut Context, key: Key) -> Flow {
        let link = self.links.get_mut(key).expect("the caller has it");
        let unread = link.inbox.unread(&cx.ring);
        if unread.len() < ENVELOPE_BYTES {
            return self.more(cx, key);
        }
        let envelope = match Envelope::decode(unread) {
            Ok(envelope) => envelope,
            Err(error) => {
                self.close(cx, key, &error.to_string());
                return Flow::Wait;
            }
        };
        if envelope.kind.is_bulk() {
            return self.begin_frame(cx, key, envelope);
        }
        let len = envelope.body_bytes as usize;
        let Some(body) = unread.get(ENVELOPE_BYTES..ENVELOPE_BYTES + len) else {
            return self.more(cx, key);
        };
        if crc32fast::hash(body) != envelope.body_crc {
            self.close(cx, key, "a message does not match its checksum");
            return Flow::Wait;
        }
        let (id, body) = (link.id, link.inbox.span(ENVELOPE_BYTES, len));
        cx.give_message(id, envelope, body);
        self.links.get_mut(key).expect("still there").inbox.consume(ENVELOPE_BYTES + len);
        Flow::On
    }

    fn begin_frame(&mut self, cx: &mut Context, key: Key, envelope: Envelope) -> Flow {
        let len = envelope.body_bytes as usize;
        if len < FRAME_HEADER_BYTES || !len.is_multiple_of(PAGE_BYTES) {
            self.close(cx, key, &format!("a frame of {len} bytes is not possible"));
            return Flow::Wait;
        }
        let link = self.links.get_mut(key).expect("the caller has it");
        // Even if there is no room: the machine has heard the envelope, and its next turn may make some.
        cx.has_news = true;
        let Some(buffer) = cx.machine.place_frame(link.id, &envelope) else {
            link.is_parked = true;
            self.parked.push(key);
            return Flow::Wait;
        };
        assert!(buffer.len_bytes() >= len, "the machine places what was asked for");
        link.inbox.consume(ENVELOPE_BYTES);
        link.inbox.cautious = len >= LARGE_BYTES;
        link.incoming = Some(Incoming { envelope, buffer, filled: 0, is_direct: false });
        Flow::On
    }

    fn step_frame(&mut self, cx: &mut Context, key: Key, mut incoming: Incoming) -> Flow {
        let link = self.links.get_mut(key).expect("the caller has it");
        let total = incoming.envelope.body_bytes as usize;
        let rest = |filled: usize| Span { start: incoming.buffer.start() + filled, len: total - filled };
        incoming.filled += link.inbox.copy_to_arena(&mut cx.ring, rest(incoming.filled));
        if incoming.filled == total {
            link.incoming = None;
            let event = Event::Frame { link: link.id, envelope: incoming.envelope, buffer: incoming.buffer };
            cx.give(event);
            return Flow::On;
        }
        let rest = rest(incoming.filled);
        incoming.is_direct = rest.len >= DIRECT_BYTES_MIN && link.secure.is_none();
        link.incoming = Some(incoming);
        if !incoming.is_direct {
            return self.more(cx, key);
        }
        link.inbox.receive_directly(&mut cx.ring, Op::LinkReceive(key), link.file, rest);
        Flow::Wait
    }
}
