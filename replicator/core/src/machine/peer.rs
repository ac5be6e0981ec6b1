//! One peer, and the connection to it.
//!
//! ```text
//!             hello in                     neither Primary
//! Greeting -------------> (verdict) ---------------------------> Idle
//!    ^                       |  I am Primary                      | (new hello)
//!    | new hello             +--> Starting --first ack--> Streaming
//!    |                       |  it is Primary
//!    |                       +--> Awaiting --start--> Cutting --saved--> Following
//!    |                                                   | the log begins anew  ^ saved
//!    |                                                   +--> Draining --> Jumping
//!    |                                                           |            ^ all is gathered
//!    |                                                           +--> Staging
//!    +--- from any of them; and from any of them --> Closing
//! ```

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;

use crate::config::{Config, PeerConfig};
use crate::disk::superblock::{LogPoint, Record};
use crate::tracker::Tracker;
use crate::units::{Buffer, Chain, Instant, LinkId, RingOffset, Sequence, Token};
use crate::wire::message::{Ack, Hello, Resync};

use super::fork::Fork;
use super::replicas::Presence;
use super::resolve::Told;
use super::source::Source;

/// State of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkState {
    /// My hello is out, its is not in.
    Greeting,
    /// Neither is Primary.
    Idle,
    /// I am Primary and said where the stream begins.
    Starting,
    /// I am Primary and send.
    Streaming,
    /// It is Primary and will say where the stream begins.
    Awaiting,
    /// It said so; my log is being cut and the promise stored.
    Cutting {
        /// The last entry both hold.
        common: Sequence,
        /// The record the stream serves.
        record: Record,
        /// Superblock sequence that will hold the promise, once the log is cut.
        saved: Option<u64>,
    },
    /// Its journal does not reach back to my log's end: what I have is applied, and made durable on the disk.
    Draining {
        /// Whether the disk is being synced.
        is_syncing: bool,
    },
    /// What I have is kept for now, and what comes is gathered behind it.
    Staging {
        /// Superblock sequence that calls what will be gathered cut.
        saved: u64,
    },
    /// My log begins anew, at a point of its log; that is being stored.
    Jumping {
        /// Superblock sequence that will hold it.
        saved: u64,
    },
    /// It sends and I acknowledge.
    Following,
    /// Closed by me; what still comes is ignored.
    Closing,
}

impl LinkState {
    /// Whether the other end is the Primary that this node follows, or is about to.
    pub(super) fn is_target(self) -> bool {
        matches!(
            self,
            Self::Awaiting
                | Self::Cutting { .. }
                | Self::Draining { .. }
                | Self::Staging { .. }
                | Self::Jumping { .. }
                | Self::Following
        )
    }

    fn may_become(self, next: Self) -> bool {
        match (self, next) {
            (Self::Closing, _) => false,
            (_, Self::Greeting | Self::Closing) => true,
            (Self::Greeting | Self::Idle, Self::Idle | Self::Starting | Self::Awaiting) => true,
            (Self::Starting, Self::Streaming) | (Self::Awaiting, Self::Cutting { .. }) => true,
            (Self::Cutting { .. }, Self::Cutting { .. } | Self::Following | Self::Draining { .. }) => true,
            (Self::Draining { .. }, Self::Draining { .. } | Self::Staging { .. }) => true,
            (Self::Draining { .. } | Self::Staging { .. }, Self::Jumping { .. }) => true,
            (Self::Jumping { .. }, Self::Following) => true,
            _ => false,
        }
    }
}

/// A place in the ring, with the log's chain there if it is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct RingPlace {
    pub(super) ring_offset: RingOffset,
    pub(super) chain: Option<Chain>,
}

impl From<LogPoint> for RingPlace {
    fn from(point: LogPoint) -> Self {
        Self { ring_offset: point.ring_offset, chain: Some(point.chain) }
    }
}

/// A piece of the ring in memory, from which frames are sent to a peer that is behind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    pub(super) buffer: Buffer,
    pub(super) ring_offset: RingOffset,
    pub(super) len: usize,
    pub(super) at: usize,
    /// The log's chain at `at`, if it is known.
    pub(super) chain: Option<Chain>,
    pub(super) holds: u32,
    pub(super) reading: bool,
    /// The stream it was read for is over.
    pub(super) stale: bool,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) state: LinkState,
    /// Number of my hellos on it.
    pub(super) session: u64,
    /// The peer's number, as its last hello said.
    pub(super) peer_session: u64,
    pub(super) hello: Option<Box<Hello>>,
    pub(super) heard_at: Instant,
    pub(super) said_at: Instant,
    /// As source: the next entry to send.
    pub(super) next: Sequence,
    /// As source: where to look for it in the ring, when memory does not have it.
    pub(super) place: Option<RingPlace>,
    pub(super) chunk: Option<Chunk>,
    /// Frames handed over for sending, in order.
    pub(super) sends: VecDeque<(Token, u32)>,
    pub(super) in_flight_bytes: u64,
    /// As source: what it acknowledged in this session.
    pub(super) ack: Ack,
    /// As source: when it last acknowledged something new, or had everything.
    pub(super) progress_at: Instant,
    /// As source: a sync up to here was asked for.
    pub(super) sync_asked: Sequence,
    /// As source: the positions it was told last.
    pub(super) told: (Sequence, Sequence),
    /// As source: when it is told newer ones though no frame carries them.
    pub(super) mark_due: Option<Instant>,
    /// As target: what I acknowledged last.
    pub(super) acked: Ack,
    /// As target: whether to acknowledge what is only received.
    pub(super) acks_received: bool,
    /// As source: the resync under way.
    pub(super) resync: Option<Box<Source>>,
    /// As target: how the resync begins.
    pub(super) plan: Option<Box<Resync>>,
    /// As Primary: the peer, whose log parted after this entry and was given up, is to be told what changed here.
    pub(super) lends: Option<Sequence>,
    /// As source: blocks that the peer said differ though it is complete for what it says.
    pub(super) diverged: Option<Box<Told>>,
}

impl Link {
    pub(super) fn new(id: LinkId, now: Instant) -> Self {
        Self {
            id,
            state: LinkState::Greeting,
            session: 1,
            peer_session: 0,
            hello: None,
            heard_at: now,
            said_at: now,
            next: Sequence(1),
            place: None,
            chunk: None,
            sends: VecDeque::with_capacity(256),
            in_flight_bytes: 0,
            ack: Ack::default(),
            progress_at: now,
            sync_asked: Sequence(0),
            told: (Sequence(0), Sequence(0)),
            mark_due: None,
            acked: Ack::default(),
            acks_received: false,
            resync: None,
            plan: None,
            lends: None,
            diverged: None,
        }
    }

    /// As source: whether the peer gathers what it is sent, so that nothing of it counts yet.
    pub(super) fn stages(&self) -> bool {
        self.resync.as_ref().is_some_and(|source| source.staged.is_some())
    }

    /// As source: whether it gathers blocks, and the stream waits.
    pub(super) fn stages_blocks(&self) -> bool {
        let staged = self.resync.as_ref().and_then(|source| source.staged.as_ref());
        staged.is_some_and(|staged| !staged.streams)
    }

    /// The only place that changes the state.
    pub(super) fn become_state(&mut self, next: LinkState) {
        assert!(self.state.may_become(next), "a link goes from {:?} to {next:?}", self.state);
        self.state = next;
    }

    /// Whether everything the peer was sent has been acknowledged durably.
    pub(super) fn is_level(&self, last: Sequence) -> bool {
        self.next > last && self.ack.durable.next() >= self.next
    }
}

/// A peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) config: PeerConfig,
    pub(super) presence: Presence,
    pub(super) link: Option<Link>,
    /// Why nothing but an operator helps.
    pub(super) standalone: Option<String>,
    /// Where its log parted from this one.
    pub(super) fork: Option<Fork>,
    /// When it last said that it is Primary.
    pub(super) seen_primary: Option<Instant>,
    /// It counts as a member though the record does not say so yet.
    pub(super) pending: bool,
    /// Since when it takes no stream from here.
    pub(super) lost_since: Instant,
    /// What it may lack.
    pub(super) tracker: Tracker,
    /// The journal here did not reach back far enough while it gathered the stream: next time it does not gather.
    pub(super) overtaken: bool,
}

impl Peer {
    pub(super) fn new(config: PeerConfig, tracker: Tracker, now: Instant) -> Self {
        let (link, standalone, fork, seen_primary) = (None, None, None, None);
        let (pending, lost_since, overtaken) = (false, now, false);
        let presence = Presence::Present;
        Self {
            config,
            presence,
            link,
            standalone,
            fork,
            seen_primary,
            pending,
            lost_since,
            tracker,
            overtaken,
        }
    }

    /// What it acknowledged in the stream under way; nothing if there is none.
    pub(super) fn ack(&self) -> Ack {
        self.streaming().map_or(Ack::default(), |link| link.ack)
    }

    /// The link, if this node streams to the peer and it acknowledges.
    pub(super) fn streaming(&self) -> Option<&Link> {
        self.link.as_ref().filter(|link| link.state == LinkState::Streaming)
    }

    /// Whether it said that it applies late.
    pub(super) fn is_delayed(&self) -> bool {
        self.link.as_ref().and_then(|link| link.hello.as_ref()).is_some_and(|hello| hello.delayed)
    }

    /// Where in the ring its catch-up reads, if it does.
    pub(super) fn reads_from(&self) -> Option<RingOffset> {
        let link = self.link.as_ref()?;
        link.chunk.map(|chunk| chunk.ring_offset).or(link.place.map(|place| place.ring_offset))
    }

    pub(super) fn next_timeout(&self, config: &Config) -> Option<Instant> {
        let link = self.link.as_ref()?;
        if link.state == LinkState::Closing {
            return None;
        }
        let ping = link.said_at.plus_ms(config.ping_interval_ms);
        let gone = link.heard_at.plus_ms(config.peer_timeout_ms);
        let times = [Some(ping), Some(gone), link.mark_due];
        times.into_iter().flatten().min()
    }
}
