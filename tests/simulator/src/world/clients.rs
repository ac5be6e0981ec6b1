//! Clients: what they ask for, and what is checked when they are answered.

use std::ops::Range;

use replicator_core::event::{Event, ZeroKind};
use replicator_core::units::{Buffer, RequestId, Span};

use super::{Moment, World};
use crate::checker::stamp;
use crate::disk::SECTOR;

/// What a client is waiting for.
pub(super) struct Request {
    pub(super) node: usize,
    pub(super) id: RequestId,
    kind: RequestKind,
    pub(super) began: u64,
}

enum RequestKind {
    Write { sectors: Range<usize>, write: u64, fua: bool },
    Read { sectors: Range<usize>, span: Span },
    Flush,
}

/// A large write whose payload is still arriving.
pub(super) struct Upload {
    pub(super) node: usize,
    pub(super) payload: Span,
    pub(super) sectors: Range<usize>,
}

impl World {
    pub(super) fn finish_request(&mut self, node: usize, request: Request, ok: bool) {
        self.now += 1;
        match request.kind {
            RequestKind::Write { sectors, write, fua } if ok => {
                self.acknowledged += 1;
                self.note(|| format!("n{node} answers write {write} of sectors {sectors:?}"));
                let open = self.requests.iter().map(|request| request.began);
                let horizon = open.min().unwrap_or(self.now);
                self.checkers[node].acknowledge(sectors, write, self.now, horizon);
                self.ledger.answered(node, &self.nodes[node], write, fua, self.now);
                self.moments.push((Moment::Answered, node));
            }
            RequestKind::Flush if ok => {
                self.flushes += 1;
                self.note(|| format!("n{node} answers a flush"));
                self.ledger.flushed(node, &self.nodes[node], request.began);
                self.moments.push((Moment::Answered, node));
            }
            RequestKind::Read { sectors, span } => {
                if ok {
                    self.reads += 1;
                    self.check_read(node, sectors, span, request.began);
                }
                let page = u32::try_from(span.start / 4096).unwrap();
                let pages = u32::try_from(span.len.div_ceil(4096)).unwrap();
                if let Some(machine) = self.nodes[node].machine.as_mut() {
                    machine.give_buffer(Buffer { page, pages });
                }
            }
            _ => {}
        }
    }

    fn check_read(&mut self, node: usize, sectors: Range<usize>, span: Span, began: u64) {
        if self.ledger.is_void(node) {
            return;
        }
        let mut last = 0;
        for (index, sector) in sectors.enumerate() {
            let start = span.start + index * SECTOR;
            let bytes = &self.nodes[node].arena[start..start + SECTOR];
            let shown = self.checkers[node].read(sector, bytes, began, self.now);
            if shown != last && shown != 0 {
                self.ledger.shown(node, &self.nodes[node], shown, self.now);
            }
            last = shown;
        }
    }

    fn range(&mut self, most: usize) -> Range<usize> {
        let length = 1 + self.random.index(most.min(self.sectors));
        let start = self.random.index(self.sectors - length + 1);
        // Half of the writes meet in a few places.
        let start = if self.random.percent(50) { start % 24 % (self.sectors - length + 1) } else { start };
        start..start + length
    }

    fn request(&mut self, node: usize, kind: RequestKind) -> RequestId {
        let id = RequestId(self.id());
        self.now += 1;
        self.requests.push(Request { node, id, kind, began: self.now });
        id
    }

    /// A client writes some sectors at `node`.
    pub fn write(&mut self, node: usize, sectors: Range<usize>, fua: bool) -> bool {
        let Some(machine) = self.nodes[node].machine.as_mut() else { return false };
        let Some(payload) = machine.place_write(sectors.len() * SECTOR) else { return false };
        self.submit(node, payload, sectors, fua);
        true
    }

    fn submit(&mut self, node: usize, payload: Span, sectors: Range<usize>, fua: bool) {
        self.next_write += 1;
        let write = self.next_write;
        self.checkers[node].begin(sectors.clone(), write, false, self.now);
        for (index, sector) in sectors.clone().enumerate() {
            let start = payload.start + index * SECTOR;
            self.nodes[node].arena[start..start + SECTOR].copy_from_slice(&stamp(write, sector));
        }
        let offset = (sectors.start * SECTOR) as u64;
        self.note(|| format!("n{node} is asked to write {write} to sectors {sectors:?}, fua {fua}"));
        let request = self.request(node, RequestKind::Write { sectors, write, fua });
        let now = self.instant(node);
        self.nodes[node].handle(now, Event::Write { request, offset, payload, fua });
        self.collect();
    }

    /// A client begins a large write at `node`, whose payload takes its time.
    fn begin_upload(&mut self, node: usize, sectors: Range<usize>) {
        let machine = self.nodes[node].machine.as_mut().expect("it serves");
        if let Some(payload) = machine.place_write(sectors.len() * SECTOR) {
            self.uploads.push(Upload { node, payload, sectors });
        }
    }

    /// A payload is complete, or its client is gone.
    fn end_upload(&mut self) {
        if self.uploads.is_empty() {
            return;
        }
        let at = self.random.index(self.uploads.len());
        let Upload { node, payload, sectors } = self.uploads.swap_remove(at);
        if self.random.percent(80) {
            return self.submit(node, payload, sectors, false);
        }
        self.mark("a client vanished in a write");
        let now = self.instant(node);
        self.nodes[node].handle(now, Event::WriteAbandoned { payload });
        self.collect();
    }

    /// Clients with half a write are gone.
    pub fn drop_uploads(&mut self) {
        for Upload { node, payload, .. } in std::mem::take(&mut self.uploads) {
            let now = self.instant(node);
            self.nodes[node].handle(now, Event::WriteAbandoned { payload });
        }
        self.collect();
    }

    /// A client zeroes some sectors at `node`.
    pub fn zero(&mut self, node: usize, sectors: Range<usize>, kind: ZeroKind) {
        self.next_write += 1;
        let (write, fua) = (self.next_write, self.random.percent(5));
        self.checkers[node].begin(sectors.clone(), write, true, self.now);
        self.ledger.zeroing(node, write, sectors.clone());
        let (offset, length) = ((sectors.start * SECTOR) as u64, (sectors.len() * SECTOR) as u64);
        self.note(|| format!("n{node} is asked to zero ({write}) sectors {sectors:?}"));
        let request = self.request(node, RequestKind::Write { sectors, write, fua });
        let now = self.instant(node);
        self.nodes[node].handle(now, Event::Zero { request, offset, length, kind, fua });
        self.collect();
    }

    /// A client flushes at `node`.
    pub fn flush(&mut self, node: usize) {
        let request = self.request(node, RequestKind::Flush);
        let now = self.instant(node);
        self.nodes[node].handle(now, Event::Flush { request });
        self.collect();
    }

    /// A client reads some sectors at `node`.
    pub fn read(&mut self, node: usize, sectors: Range<usize>) {
        let length = sectors.len() * SECTOR;
        let Some(machine) = self.nodes[node].machine.as_mut() else { return };
        let Some(buffer) = machine.take_buffer(length) else { return };
        let destination = Span { start: buffer.start(), len: length };
        let offset = (sectors.start * SECTOR) as u64;
        let request = self.request(node, RequestKind::Read { sectors, span: destination });
        let now = self.instant(node);
        self.nodes[node].handle(now, Event::Read { request, offset, destination });
        self.collect();
    }

    /// A client of a serving node does something.
    pub fn client(&mut self) {
        let serving: Vec<usize> = (0..self.nodes.len()).filter(|n| self.nodes[*n].serving).collect();
        if serving.is_empty() || self.requests.len() > 40 {
            return;
        }
        let node = serving[self.random.index(serving.len())];
        if self.is_paused(node) {
            return;
        }
        if self.random.percent(20) {
            self.end_upload();
        }
        if self.random.percent(self.setup.bulk_percent) {
            let length = 129 + self.random.index(self.sectors.min(2048) - 129);
            let start = self.random.index(self.sectors - length + 1);
            return self.begin_upload(node, start..start + length);
        }
        match self.random.below(100) {
            0..=57 => {
                let most = if self.random.percent(5) { self.sectors.min(256) } else { 9 };
                let (range, fua) = (self.range(most), self.random.percent(8));
                self.write(node, range, fua);
            }
            58..=64 => {
                let kind = if self.random.percent(50) { ZeroKind::Trim } else { ZeroKind::Zeroes };
                let range = self.range(16);
                self.zero(node, range, kind);
            }
            65..=71 => self.flush(node),
            _ => {
                let range = self.range(16);
                self.read(node, range);
            }
        }
    }

    /// Requests that wait for an answer.
    pub fn waiting(&self) -> usize {
        self.requests.len()
    }
}
