//! Connections between nodes: dialled, cut, reset, and what arrives through them, whole or in pieces.

use replicator_core::event::Event;
use replicator_core::units::{Buffer, LinkId};
use replicator_core::wire::envelope::{Envelope, MessageKind};

use super::{MS, Moment, World, node_id};
use crate::network::Wire;
use crate::node::{Io, Out};

impl World {
    /// Cuts or heals the link between two nodes; both hear of it.
    pub fn set_cut(&mut self, a: usize, b: usize, cut: bool) {
        (self.routes[a][b].refused, self.routes[b][a].refused) = (cut, cut);
        if cut {
            self.reset(a, b);
        }
    }

    pub fn is_cut(&self, a: usize, b: usize) -> bool {
        self.routes[a][b].refused
    }

    /// Ends the connections between two nodes.
    pub fn reset(&mut self, a: usize, b: usize) {
        for wire in &mut self.wires {
            let nodes = (wire.ends[0].node, wire.ends[1].node);
            if nodes == (a, b) || nodes == (b, a) {
                for pipe in &mut wire.pipes {
                    pipe.queue.clear();
                    (pipe.closed, pipe.dead) = (true, false);
                }
            }
        }
        while let Some((index, end)) = self.find_end(|wire, end| {
            let nodes = (wire.ends[0].node, wire.ends[1].node);
            (nodes == (a, b) || nodes == (b, a)) && wire.ends[end].up
        }) {
            self.take_down(index, end);
            self.drop_gone_wires();
        }
        self.collect();
    }

    fn find_end(&self, which: impl Fn(&Wire, usize) -> bool) -> Option<(usize, usize)> {
        let ends = |index: usize| [(index, 0), (index, 1)];
        (0..self.wires.len()).flat_map(ends).find(|(index, end)| which(&self.wires[*index], *end))
    }

    pub(super) fn can_deliver(&self, wire: &Wire, way: usize) -> bool {
        let (from, to) = (wire.ends[way].node, wire.ends[1 - way].node);
        let route = &self.routes[from][to];
        wire.has_news(way) && !route.silent && route.delayed_until <= self.now && !self.is_paused(to)
    }

    /// The next thing that pipe `way` of a wire brings.
    pub(super) fn deliver(&mut self, index: usize, way: usize) {
        let wire = &mut self.wires[index];
        let (target, link) = (wire.ends[1 - way].node, wire.ends[1 - way].link);
        let now = self.instant(target);
        let pipe = &mut self.wires[index].pipes[way];
        if let Some((envelope, body, buffer)) = pipe.half.take() {
            return self.arrive(target, link, &envelope, &body, buffer);
        }
        let Some((envelope, body)) = pipe.queue.pop_front() else {
            self.take_down(index, 1 - way);
            return self.drop_gone_wires();
        };
        // Through the bytes, as on a real wire.
        let envelope = Envelope::decode(&envelope.encode()).expect("what is sent can be read");
        if !envelope.kind.is_bulk() {
            self.note(|| format!("n{target} hears {:?} in epoch {}", envelope.kind, envelope.epoch));
            if matches!(envelope.kind, MessageKind::Start | MessageKind::Resync) {
                self.ledger.hears_resync(target, envelope.kind == MessageKind::Resync);
            }
            return self.nodes[target].handle(now, Event::Message { link, envelope, body: &body });
        }
        match self.nodes[target].place(link, &envelope) {
            Some(buffer) if self.rough && self.random.percent(20) => {
                self.wires[index].pipes[way].half = Some((envelope, body, buffer));
                self.moments.push((Moment::HalfFrame, target));
            }
            Some(buffer) => self.arrive(target, link, &envelope, &body, buffer),
            None => {
                self.mark("a frame waits for memory");
                self.wires[index].pipes[way].queue.push_front((envelope, body));
                self.nodes[target].turn(now);
                if self.nodes.iter().all(|node| node.ios.is_empty()) {
                    self.pass_time();
                }
            }
        }
    }

    pub(super) fn arrive(
        &mut self,
        node: usize,
        link: LinkId,
        envelope: &Envelope,
        body: &[u8],
        buffer: Buffer,
    ) {
        let now = self.instant(node);
        self.note(|| {
            format!(
                "n{node} receives {:?} of {} bytes in epoch {}",
                envelope.kind,
                body.len(),
                envelope.epoch
            )
        });
        self.nodes[node].fill(buffer, body);
        self.collect();
        if envelope.kind == MessageKind::Frame {
            self.ledger.received(node, envelope, body);
        }
        self.nodes[node].handle(now, Event::Frame { link, envelope: *envelope, buffer });
    }

    /// Moves what nodes sent onto the wires, and dials where nobody is connected.
    pub(super) fn settle_links(&mut self) {
        for index in 0..self.nodes.len() {
            while let Some(out) = self.nodes[index].out.pop_front() {
                let link = match &out {
                    Out::Message { link, .. } | Out::Close { link, .. } => *link,
                };
                let found = self
                    .wires
                    .iter()
                    .enumerate()
                    .find_map(|(at, wire)| wire.end_of(index, link).map(|end| (at, end)));
                let Some((at, end)) = found else { continue };
                match out {
                    Out::Message { envelope, body, .. } => {
                        self.wires[at].pipes[end].queue.push_back((envelope, body));
                    }
                    Out::Close { reason, retry, .. } => {
                        self.note(|| format!("n{index} closes a connection: {reason}"));
                        // What was sent before the close still arrives.
                        let (a, b) = (self.wires[at].ends[0].node, self.wires[at].ends[1].node);
                        let wait = if retry { 10 } else { 1000 };
                        self.dial_after[a.min(b)][a.max(b)] = self.now + wait * MS;
                        self.take_down(at, end);
                    }
                }
            }
        }
        self.drop_gone_wires();
        self.dial();
    }

    /// One end of a wire is gone, for the node there; the other end hears of it behind what was sent.
    fn take_down(&mut self, index: usize, end: usize) {
        let wire = &mut self.wires[index];
        if !std::mem::take(&mut wire.ends[end].up) {
            return;
        }
        let (node, link) = (wire.ends[end].node, wire.ends[end].link);
        wire.pipes[end].closed = true;
        let incoming = &mut wire.pipes[1 - end];
        incoming.queue.clear();
        let half = incoming.half.take();
        let now = self.instant(node);
        let of = |io: &Io| matches!(io, Io::Sent { link: of, .. } if *of == link);
        self.nodes[node].ios.retain(|io| !of(io));
        self.nodes[node].hung.retain(|(_, io)| !of(io));
        if let Some((_, _, buffer)) = half {
            self.mark("half a frame abandoned");
            self.nodes[node].handle(now, Event::FrameAbandoned { buffer });
        }
        self.note(|| format!("n{node} loses a connection"));
        self.nodes[node].handle(now, Event::LinkDown { link, reason: "closed".into() });
    }

    pub(super) fn drop_gone_wires(&mut self) {
        self.wires.retain(|wire| wire.ends[0].up || wire.ends[1].up);
    }

    fn dial(&mut self) {
        let count = self.nodes.len();
        for a in 0..count {
            for b in a + 1..count {
                let connected = self
                    .wires
                    .iter()
                    .any(|wire| wire.ends[0].node == a && wire.ends[1].node == b && wire.ends[0].up);
                let (there, back) = (&self.routes[a][b], &self.routes[b][a]);
                let closed = there.refused || back.refused || there.silent || back.silent;
                let busy = self.is_paused(a) || self.is_paused(b) || self.now < self.dial_after[a][b];
                if connected || closed || busy || !self.is_up(a) || !self.is_up(b) {
                    continue;
                }
                let (x, y) = (LinkId(self.id()), LinkId(self.id()));
                self.wires.push(Wire::new((a, x), (b, y)));
                self.note(|| format!("n{a} and n{b} are connected"));
                let (now_a, now_b) = (self.instant(a), self.instant(b));
                self.nodes[a].handle(now_a, Event::LinkUp { link: x, peer: Some(node_id(b)) });
                // The listener does not know who called until it says so.
                self.nodes[b].handle(now_b, Event::LinkUp { link: y, peer: None });
            }
        }
    }
}
