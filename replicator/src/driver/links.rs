//! All connections to peers: dialing, accepting, securing them, proving the secret, receiving messages and frames,
//! sending, closing.
//! What a message means is the machine's business; here it is only taken off the stream and checked to be whole.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use replicator_core::event::{Errno, Event};
use replicator_core::limits::{FRAME_HEADER_BYTES, MESSAGE_BODY_BYTES_MAX};
use replicator_core::units::{Instant, LinkId, NodeId, PAGE_BYTES, Span, Token, VolumeId};
use replicator_core::wire::envelope::{ENVELOPE_BYTES, Envelope};
use replicator_core::wire::message::{Ack, Message};
use rustix::net::Shutdown;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use super::Op;
use super::context::Context;
use super::dials::Dial;
use super::slab::{Key, Slab};
use crate::auth::{Handshake, Progress};
use crate::device::io_error;
use crate::identity::Identity;
use crate::link::{BACKLOG_BYTES_MAX, FAREWELL_MS, Incoming, Link, Phase};
use crate::options::PeerAddress;
use crate::secrets::{KeyId, Secrets};
use crate::secure::Secure;
use crate::session::Session;

mod receive;

/// Connections that have not proven the secret, accepted at one time.
const UNPROVEN_MAX: usize = 16;
/// Links there may be at one time, proven or not.
pub(crate) const LINKS_MAX: usize = 96;

/// The peer side of a volume.
pub(crate) struct Links {
    links: Slab<Link>,
    dials: Vec<Dial>,
    /// Who may be at the other end.
    peers: Vec<NodeId>,
    secrets: Secrets,
    /// What TLS is spoken with, if it is.
    identity: Option<Identity>,
    volume: VolumeId,
    peer_timeout_ms: u64,
    next_id: u64,
    dirty: Vec<Key>,
    parked: Vec<Key>,
    /// Empty; the list's second half, kept for its memory.
    parked_before: Vec<Key>,
    body: Box<[u8; MESSAGE_BODY_BYTES_MAX]>,
}

impl Links {
    pub(crate) fn new(
        node: NodeId,
        peers: &[PeerAddress],
        secrets: Secrets,
        identity: Option<Identity>,
        volume: VolumeId,
        peer_timeout_ms: u64,
        now: Instant,
    ) -> Self {
        Self {
            links: Slab::with_capacity(LINKS_MAX),
            dials: Dial::of(node, peers, now),
            peers: peers.iter().map(|peer| peer.node).collect(),
            secrets,
            identity,
            volume,
            peer_timeout_ms,
            next_id: 1,
            dirty: Vec::with_capacity(LINKS_MAX),
            parked: Vec::with_capacity(LINKS_MAX),
            parked_before: Vec::with_capacity(LINKS_MAX),
            body: Box::new([0; MESSAGE_BODY_BYTES_MAX]),
        }
    }

    /// Who may be at the other end.
    pub(crate) fn peers(&self) -> &[NodeId] {
        &self.peers
    }

    /// There is another peer.
    pub(crate) fn add_peer(&mut self, node: NodeId, peer: &PeerAddress, now: Instant) {
        self.peers.push(peer.node);
        self.dials.extend(Dial::of(node, std::slice::from_ref(peer), now));
    }

    /// A peer is none any more: nobody dials it, and it is not let in.
    pub(crate) fn remove_peer(&mut self, node: NodeId) {
        self.peers.retain(|peer| *peer != node);
        self.dials.retain(|dial| dial.node != node);
    }

    /// Other keys are accepted from now on, and perhaps another one is used. Ends the links that were proven with one that
    /// is accepted no more, and those that are being proven; says how many. Whoever dialed dials again at once.
    pub(crate) fn rekey(&mut self, cx: &mut Context, secrets: Secrets, identity: Option<Identity>) -> usize {
        let accepted: Vec<KeyId> = secrets.accepted().map(KeyId::of).collect();
        (self.secrets, self.identity) = (secrets, identity);
        let is_over = |link: &Link| match link.phase {
            Phase::Up => link.proven_with.is_none_or(|key| !accepted.contains(&key)),
            Phase::Closing { .. } => false,
            Phase::Connecting | Phase::Securing | Phase::Proving(_) => true,
        };
        let over: Vec<Key> =
            self.links.iter().filter(|(_, link)| is_over(link)).map(|(key, _)| key).collect();
        for key in &over {
            self.part(cx, *key, "the cluster's keys are others now");
        }
        over.len()
    }

    /// When something here is due.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        let deadlines = self.links.iter().filter_map(|(_, link)| link.deadline);
        deadlines.chain(self.dials.iter().filter_map(|dial| dial.due)).min()
    }

    /// Whether a link waits for memory.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.parked.is_empty()
    }

    /// Dials who is to be dialed, ends what takes too long.
    pub(crate) fn expire(&mut self, cx: &mut Context) {
        for index in 0..self.dials.len() {
            if self.dials[index].due.is_some_and(|due| due <= cx.now) {
                self.dial(cx, index);
            }
        }
        if self.links.iter().all(|(_, link)| link.deadline.is_none_or(|deadline| deadline > cx.now)) {
            return;
        }
        let keys: Vec<Key> = self.links.keys().collect();
        for key in keys {
            let Some(link) = self.links.get_mut(key) else { continue };
            if link.deadline.is_none_or(|deadline| deadline > cx.now) {
                continue;
            }
            link.deadline = None;
            match link.phase {
                Phase::Connecting => self.close(cx, key, "no answer"),
                Phase::Securing => self.close(cx, key, "it did not prove to be a node in time"),
                Phase::Proving(_) => self.close(cx, key, "it did not prove the secret in time"),
                Phase::Closing { .. } => self.shut(cx, key),
                Phase::Up => {}
            }
        }
    }

    fn dial(&mut self, cx: &mut Context, index: usize) {
        let dial = &mut self.dials[index];
        dial.due = None;
        let (node, name, address) = (dial.node, dial.name.clone(), dial.address);
        let socket = match self.socket(address) {
            Ok(socket) => socket,
            Err(error) => return self.dial_failed(cx, node, &error.to_string(), None),
        };
        match self.add(cx, socket.into(), Some(node), name) {
            Ok(key) => {
                let link = self.links.get_mut(key).expect("just added");
                link.connecting = true;
                cx.ring.connect(Op::LinkConnect(key), link.file, address);
            }
            Err(error) => self.dial_failed(cx, node, &error.to_string(), None),
        }
    }

    fn socket(&self, address: SocketAddr) -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        self.configure(&socket)?;
        Ok(socket)
    }

    fn configure(&self, socket: &Socket) -> std::io::Result<()> {
        socket.set_tcp_nodelay(true)?;
        let keepalive =
            TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(2));
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_user_timeout(Some(Duration::from_millis(self.peer_timeout_ms)))
    }

    fn add(
        &mut self,
        cx: &mut Context,
        socket: OwnedFd,
        peer: Option<NodeId>,
        name: String,
    ) -> std::io::Result<Key> {
        if self.links.len() >= LINKS_MAX {
            return Err(std::io::ErrorKind::QuotaExceeded.into());
        }
        let file = cx.ring.add_file(socket).map_err(|(_, error)| error)?;
        let id = LinkId(self.next_id);
        self.next_id += 1;
        match Link::new(&mut cx.ring, file, id, peer, name, cx.now) {
            Ok(link) => Ok(self.links.insert(link)),
            Err(error) => {
                cx.ring.remove_file(file);
                Err(error)
            }
        }
    }

    fn dial_failed(&mut self, cx: &Context, node: NodeId, reason: &str, up_ms: Option<u64>) {
        let Some(dial) = self.dials.iter_mut().find(|dial| dial.node == node) else { return };
        dial.failed(cx.now, up_ms);
        // The end of a link that was up is the machine's to report; one that is away is logged once.
        if up_ms.is_none() && dial.logged.as_deref() != Some(reason) {
            cx.log.line(format_args!("peer {} at {}: {reason}", dial.name, dial.address));
            dial.logged = Some(reason.to_owned());
        }
    }

    /// A connection was accepted.
    pub(crate) fn accepted(&mut self, cx: &mut Context, socket: OwnedFd) {
        let unproven = |link: &Link| link.peer.is_none() && link.is_unproven();
        let mut oldest = self.links.iter().filter(|(_, link)| unproven(link)).collect::<Vec<_>>();
        if oldest.len() >= UNPROVEN_MAX {
            // The oldest goes: a peer proves the secret within milliseconds, whoever sits there does not.
            oldest.sort_by_key(|(_, link)| link.id);
            let key = oldest[0].0;
            self.close(cx, key, "too many connections have not proven the secret");
        }
        let socket = Socket::from(socket);
        let name = match socket.peer_addr().ok().and_then(|address| address.as_socket()) {
            Some(address) => format!("at {address}"),
            None => "gone already".to_owned(),
        };
        let added = self.configure(&socket).and_then(|()| self.add(cx, socket.into(), None, name));
        match added {
            Ok(key) => self.begin(cx, key),
            Err(error) => cx.log.line(format_args!("a peer connection is refused: {error}")),
        }
    }

    /// A dialed socket is connected, or not.
    pub(crate) fn connected(&mut self, cx: &mut Context, key: Key, result: Result<usize, Errno>) {
        let Some(link) = self.links.get_mut(key) else { return };
        link.connecting = false;
        match result {
            _ if matches!(link.phase, Phase::Closing { .. }) => self.bury(cx, key),
            Ok(_) => self.begin(cx, key),
            Err(error) => self.close(cx, key, &format!("cannot connect: {}", io_error(error))),
        }
    }

    /// The stream is there.
    fn begin(&mut self, cx: &mut Context, key: Key) {
        if let Some(identity) = &self.identity {
            let link = self.links.get_mut(key).expect("the caller has it");
            let session = match link.peer {
                Some(peer) => Session::dial(identity, peer),
                None => Session::listen(identity),
            };
            let secure = session.map_err(|error| error.to_string()).and_then(|session| {
                Secure::new(&mut cx.ring, session).map_err(|error| format!("no memory: {error}"))
            });
            match secure {
                Ok(secure) => link.secure = Some(secure),
                Err(reason) => return self.close(cx, key, &reason),
            }
            link.phase = Phase::Securing;
            link.deadline = Some(cx.now.plus_ms(crate::link::HANDSHAKE_MS));
            self.mark_dirty(key);
            self.advance(cx, key);
        } else {
            self.prove(cx, key);
        }
    }

    /// Begins the handshake.
    fn prove(&mut self, cx: &mut Context, key: Key) {
        let link = self.links.get_mut(key).expect("the caller has it");
        let begun = if link.peer.is_some() {
            Handshake::dial(&self.secrets, self.volume).map(|(handshake, say)| (handshake, Some(say)))
        } else {
            Handshake::listen(&self.secrets, self.volume).map(|handshake| (handshake, None))
        };
        match begun {
            Ok((handshake, say)) => {
                link.phase = Phase::Proving(Box::new(handshake));
                link.deadline = Some(cx.now.plus_ms(crate::link::HANDSHAKE_MS));
                if let Some(say) = say {
                    self.say(cx, key, say.bytes());
                }
                self.advance(cx, key);
            }
            Err(error) => self.close(cx, key, &error.to_string()),
        }
    }

    fn find(&self, id: LinkId) -> Option<Key> {
        self.links.iter().find(|(_, link)| link.id == id && link.is_up()).map(|(key, _)| key)
    }

    /// Sends a message. A link that is going down takes nothing; the machine will hear of its end.
    pub(crate) fn send(&mut self, cx: &mut Context, id: LinkId, mut envelope: Envelope, message: &Message) {
        let Some(key) = self.find(id) else { return };
        let len = message.encode(&mut self.body);
        envelope.body_bytes = u32::try_from(len).expect("bodies are small");
        envelope.body_crc = crc32fast::hash(&self.body[..len]);
        let link = self.links.get_mut(key).expect("just found");
        let said = link
            .outbox
            .say(&mut cx.ring, &envelope.encode())
            .and_then(|()| link.outbox.say(&mut cx.ring, &self.body[..len]));
        self.said(cx, key, said);
    }

    /// Sends an acknowledgement.
    pub(crate) fn send_ack(&mut self, cx: &mut Context, id: LinkId, envelope: Envelope, ack: Ack) {
        self.send(cx, id, envelope, &Message::Ack(ack));
    }

    /// Sends a frame straight from the arena.
    pub(crate) fn send_frame(
        &mut self,
        cx: &mut Context,
        id: LinkId,
        token: Token,
        envelope: &Envelope,
        span: Span,
    ) {
        let Some(key) = self.find(id) else { return };
        let link = self.links.get_mut(key).expect("just found");
        let said = link.outbox.say(&mut cx.ring, &envelope.encode());
        link.outbox.attach(span);
        link.outbox.release_later(token);
        self.said(cx, key, said);
    }

    fn say(&mut self, cx: &mut Context, key: Key, bytes: &[u8]) {
        let link = self.links.get_mut(key).expect("the caller has it");
        let said = link.outbox.say(&mut cx.ring, bytes);
        self.said(cx, key, said);
    }

    fn said(&mut self, cx: &mut Context, key: Key, said: std::io::Result<()>) {
        let link = self.links.get_mut(key).expect("the caller has it");
        if let Err(error) = said {
            return self.close(cx, key, &format!("no memory: {error}"));
        }
        if link.outbox.waiting_bytes() > BACKLOG_BYTES_MAX {
            return self.close(cx, key, "it does not read what it is sent");
        }
        self.mark_dirty(key);
    }

    fn mark_dirty(&mut self, key: Key) {
        if let Some(link) = self.links.get_mut(key)
            && !link.is_dirty
        {
            link.is_dirty = true;
            self.dirty.push(key);
        }
    }

    /// Sends what there is to say, once per link.
    pub(crate) fn flush(&mut self, cx: &mut Context) {
        for index in 0..self.dirty.len() {
            let key = self.dirty[index];
            if let Some(link) = self.links.get_mut(key) {
                link.is_dirty = false;
                if !link.is_shut() {
                    link.start(&mut cx.ring, Op::LinkSend(key));
                }
            }
        }
        self.dirty.clear();
    }

    /// A send is done.
    pub(crate) fn sent(&mut self, cx: &mut Context, key: Key, result: Result<usize, Errno>) {
        let Some(link) = self.links.get_mut(key) else { return };
        let count = match result {
            Ok(count) => count,
            Err(Errno(libc::EINTR | libc::EAGAIN)) => 0,
            Err(error) => {
                link.outbox.failed();
                let reason = format!("sending failed: {}", io_error(error));
                self.close(cx, key, &reason);
                return self.bury(cx, key);
            }
        };
        if link.is_shut() {
            link.outbox.failed();
            return self.bury(cx, key);
        }
        let (id, is_up) = (link.id, link.is_up());
        for token in link.sent(&mut cx.ring, Op::LinkSend(key), count) {
            // Frames of a link that goes down are released by its end.
            if is_up {
                cx.give(Event::FrameSent { link: id, token });
            }
        }
        let link = self.links.get_mut(key).expect("still there");
        match link.phase {
            Phase::Closing { .. } if link.has_said_all() => self.shut(cx, key),
            _ => self.mark_dirty(key),
        }
    }

    /// The machine wants a link closed; what it said before still leaves.
    pub(crate) fn close_by_id(&mut self, cx: &mut Context, id: LinkId, reason: &str, retry: bool) {
        let Some(key) = self.find(id) else { return };
        if !retry && let Some(peer) = self.links.get(key).and_then(|link| link.peer) {
            self.refuse(peer, reason);
        }
        self.part(cx, key, reason);
    }

    /// Ends a link once what is to be said on it has left, or after a while.
    pub(super) fn part(&mut self, cx: &mut Context, key: Key, reason: &str) {
        let Some(link) = self.links.get_mut(key) else { return };
        link.phase = Phase::Closing { reason: reason.to_owned(), is_shut: false };
        link.deadline = Some(cx.now.plus_ms(FAREWELL_MS));
        if link.has_said_all() {
            self.shut(cx, key);
        } else {
            self.mark_dirty(key);
        }
    }

    fn refuse(&mut self, peer: NodeId, reason: &str) {
        if let Some(dial) = self.dials.iter_mut().find(|dial| dial.node == peer) {
            dial.refused(reason);
        }
    }

    /// Dials those again who were refused: the reason may be gone.
    pub(crate) fn retry_refused(&mut self, now: Instant) {
        self.dials.iter_mut().for_each(|dial| dial.retry_refused(now));
    }

    /// Ends a link that failed.
    pub(super) fn close(&mut self, cx: &mut Context, key: Key, reason: &str) {
        let Some(link) = self.links.get_mut(key) else { return };
        if !matches!(link.phase, Phase::Closing { .. }) {
            link.phase = Phase::Closing { reason: reason.to_owned(), is_shut: false };
        }
        self.shut(cx, key);
    }

    fn shut(&mut self, cx: &mut Context, key: Key) {
        let Some(link) = self.links.get_mut(key) else { return };
        if let Phase::Closing { is_shut, .. } = &mut link.phase
            && !*is_shut
        {
            *is_shut = true;
            link.deadline = None;
            // What is in flight ends with this, one way or the other; a socket that is still being connected
            // needs more than a shutdown.
            let _ = rustix::net::shutdown(cx.ring.file(link.file), Shutdown::Both);
            if link.connecting {
                cx.ring.cancel_file(link.file);
            }
        }
        self.bury(cx, key);
    }

    /// Lets a link go once the kernel has no operation of it: only then its buffers are nobody's.
    fn bury(&mut self, cx: &mut Context, key: Key) {
        if !self.links.get(key).is_some_and(|link| link.is_shut() && link.is_quiet()) {
            return;
        }
        let mut link = self.links.remove(key).expect("just seen");
        let Phase::Closing { reason, .. } = std::mem::replace(&mut link.phase, Phase::Connecting) else {
            return;
        };
        if let Some(Incoming { buffer, .. }) = link.incoming {
            cx.give(Event::FrameAbandoned { buffer });
        }
        let up_ms = link.up_since.map(|since| cx.now.since_ns(since) / 1_000_000);
        match link.peer {
            Some(node) => self.dial_failed(cx, node, &reason, up_ms),
            // The end of a link that was up is the machine's to report.
            None if link.was_up => {}
            None => cx.log.line(format_args!("peer {}: {reason}", link.name)),
        }
        let (id, was_up) = (link.id, link.was_up);
        link.release(&mut cx.ring);
        // Frames that have not left are the machine's again with this.
        if was_up {
            cx.give(Event::LinkDown { link: id, reason });
        }
    }
}
