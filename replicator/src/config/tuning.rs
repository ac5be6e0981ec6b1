//! Keys of a volume that have a default which is right for most.

use std::time::Duration;

use replicator_core::config::OnPeerLoss;
use replicator_core::limits::FRAME_BYTES_MAX;
use replicator_core::units::PAGE_BYTES;

use super::problem::Problems;
use super::section::Section;
use super::value::{format_duration_ms, format_size};
use crate::options::DirectIo;

/// Bytes the arena is a multiple of.
const BUFFER_STEP_BYTES: u64 = 64 * PAGE_BYTES as u64;
const BUFFER_BYTES_MIN: u64 = 16 << 20;
const BUFFER_BYTES_MAX: u64 = 64 << 30;
const SEND_WINDOW_BYTES_MIN: u64 = 2 << 20;
const CHECKSUM_BYTES_MIN: u64 = 256 << 10;
const CHECKSUM_BYTES_MAX: u64 = 64 << 30;
const SCRUB_INTERVAL_MS_MAX: u64 = 366 * 86_400_000;
const _: () = assert!(SEND_WINDOW_BYTES_MIN > FRAME_BYTES_MAX as u64);

/// How a volume behaves, the same on all its replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// What a primary does when a member of the in-sync set is gone.
    pub on_peer_loss: OnPeerLoss,
    /// Bytes of memory for requests and frames.
    pub buffer_bytes: u64,
    /// Whether disk and journal are opened with `O_DIRECT`.
    pub direct_io: DirectIo,
    /// Whether the process locks its memory.
    pub lock_memory: bool,
    /// `IORING_SETUP_DEFER_TASKRUN`.
    pub defer_taskrun: bool,
    /// How long the reactor looks for completions before it sleeps, at most.
    pub busy_poll: Duration,
    /// NBD connections at one time.
    pub nbd_connections_max: u32,
    /// Whether everything between its replicas is in TLS; `None` is yes, unless all of them listen on loopback addresses.
    pub tls: Option<bool>,
    /// Whether NBD clients over TCP must speak TLS; nothing if that follows from the addresses.
    pub nbd_tls: Option<bool>,
    /// How long journaled entries may wait for a sync.
    pub sync_interval_ms: u64,
    /// How often an idle link is probed.
    pub ping_interval_ms: u64,
    /// A peer from which nothing came for so long is gone.
    pub peer_timeout_ms: u64,
    /// A disk or journal that answers nothing for so long counts as failed; 0 waits for ever.
    pub disk_timeout_ms: u64,
    /// Bytes applied after which a checkpoint is taken; `None` is 64 MiB, or a quarter of a small ring.
    pub checkpoint_bytes: Option<u64>,
    /// Whether replicas that are made from now on keep checksums of their blocks at rest.
    pub checksums: bool,
    /// Bytes of these checksums that may be in memory.
    pub checksum_memory_bytes: u64,
    /// How long after a scrub the next one begins by itself; 0 if none does.
    pub scrub_interval_ms: u64,
    /// Bytes that may be under way to one peer.
    pub send_window_bytes: u64,
    /// Frames closed and not yet committed.
    pub frames_in_flight_max: u32,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            on_peer_loss: OnPeerLoss::Freeze,
            buffer_bytes: 64 << 20,
            direct_io: DirectIo::Auto,
            lock_memory: true,
            defer_taskrun: false,
            busy_poll: Duration::from_micros(100),
            nbd_connections_max: 16,
            tls: None,
            nbd_tls: None,
            sync_interval_ms: 10,
            ping_interval_ms: 500,
            peer_timeout_ms: 3000,
            disk_timeout_ms: 30_000,
            checkpoint_bytes: None,
            checksums: false,
            checksum_memory_bytes: 16 << 20,
            scrub_interval_ms: 0,
            send_window_bytes: 8 << 20,
            frames_in_flight_max: 2,
        }
    }
}

impl Tuning {
    /// Reads the tuning keys of a `[[volume]]`.
    pub(super) fn read(section: &mut Section<'_>, problems: &mut Problems) -> Self {
        let mut tuning = Self::default();
        tuning.read_behaviour(section, problems);
        tuning.read_memory(section, problems);
        tuning.read_timing(section, problems);
        tuning.read_checksums(section, problems);
        if let Some(size) = section.size("checkpoint", problems) {
            if size.value < 1 << 20 {
                let help = "write at least \"1MiB\"; \"64MiB\" is the default".to_owned();
                problems.error(
                    &size.span,
                    "`checkpoint`: each checkpoint syncs the disk; below 1MiB that is all it would do",
                    help,
                );
            }
            tuning.checkpoint_bytes = Some(size.value);
        }
        tuning
    }

    fn read_behaviour(&mut self, section: &mut Section<'_>, problems: &mut Problems) {
        let losses = [("freeze", OnPeerLoss::Freeze), ("continue", OnPeerLoss::Continue)];
        let direct = [("auto", DirectIo::Auto), ("on", DirectIo::On), ("off", DirectIo::Off)];
        let tls = [("auto", None), ("on", Some(true)), ("off", Some(false))];
        let rings = [("coop-taskrun", false), ("defer-taskrun", true)];
        if let Some(choice) = section.choice("on-peer-loss", &losses, problems) {
            self.on_peer_loss = choice.value;
        }
        if let Some(choice) = section.choice("direct-io", &direct, problems) {
            self.direct_io = choice.value;
        }
        if let Some(choice) = section.choice("tls", &tls, problems) {
            self.tls = choice.value;
        }
        if let Some(choice) = section.choice("nbd-tls", &tls, problems) {
            self.nbd_tls = choice.value;
        }
        if let Some(choice) = section.choice("ring", &rings, problems) {
            self.defer_taskrun = choice.value;
        }
        if let Some(count) = section.integer("busy-poll-us", 0..=10_000, problems) {
            self.busy_poll = Duration::from_micros(count.value);
        }
        if let Some(choice) = section.boolean("lock-memory", problems) {
            self.lock_memory = choice.value;
        }
        if let Some(count) = section.integer("nbd-connections", 1..=1024, problems) {
            self.nbd_connections_max = u32::try_from(count.value).expect("in range");
        }
        if let Some(count) = section.integer("frames-in-flight", 1..=64, problems) {
            self.frames_in_flight_max = u32::try_from(count.value).expect("in range");
        }
    }

    fn read_checksums(&mut self, section: &mut Section<'_>, problems: &mut Problems) {
        if let Some(choice) = section.choice("checksums", &[("on", true), ("off", false)], problems) {
            self.checksums = choice.value;
        }
        if let Some(size) = section.size("checksum-memory", problems) {
            self.checksum_memory_bytes = size.value;
            if !(CHECKSUM_BYTES_MIN..=CHECKSUM_BYTES_MAX).contains(&size.value) {
                let range = (format_size(CHECKSUM_BYTES_MIN), format_size(CHECKSUM_BYTES_MAX));
                let message = format!(
                    "`checksum-memory`: {} is out of range; it may be {} to {}",
                    format_size(size.value),
                    range.0,
                    range.1
                );
                problems.error(&size.span, message, "\"16MiB\" is the default".to_owned());
            }
        }
        if let Some(time) = section.duration_ms("scrub-interval", problems) {
            self.scrub_interval_ms = time.value;
            if time.value != 0 && !(60_000..=SCRUB_INTERVAL_MS_MAX).contains(&time.value) {
                problems.error(
                    &time.span,
                    "`scrub-interval` is out of range; it may be \"1min\" to a year, or \"0s\" for none",
                    None,
                );
            }
        }
    }

    fn read_memory(&mut self, section: &mut Section<'_>, problems: &mut Problems) {
        if let Some(size) = section.size("buffer-memory", problems) {
            self.buffer_bytes = size.value;
            if !(BUFFER_BYTES_MIN..=BUFFER_BYTES_MAX).contains(&size.value) {
                let range = (format_size(BUFFER_BYTES_MIN), format_size(BUFFER_BYTES_MAX));
                let message = format!(
                    "`buffer-memory`: {} is out of range; it may be {} to {}",
                    format_size(size.value),
                    range.0,
                    range.1
                );
                problems.error(&size.span, message, "\"64MiB\" is the default".to_owned());
            } else if !size.value.is_multiple_of(BUFFER_STEP_BYTES) {
                let message = format!(
                    "`buffer-memory`: {} bytes is not a multiple of {}",
                    size.value,
                    format_size(BUFFER_STEP_BYTES)
                );
                let help = format!("write {}", size.value.next_multiple_of(BUFFER_STEP_BYTES));
                problems.error(&size.span, message, help);
            }
        }
        if let Some(size) = section.size("send-window", problems) {
            self.send_window_bytes = size.value;
            if size.value < SEND_WINDOW_BYTES_MIN {
                let message = format!(
                    "`send-window`: {} is too small; the largest frame has to fit",
                    format_size(size.value)
                );
                problems.error(
                    &size.span,
                    message,
                    format!("write at least \"{}\"", format_size(SEND_WINDOW_BYTES_MIN)),
                );
            }
            if size.value > self.buffer_bytes / 2 && self.buffer_bytes >= BUFFER_BYTES_MIN {
                let message = format!(
                    "`send-window` is more than half of `buffer-memory` ({})",
                    format_size(self.buffer_bytes)
                );
                let help =
                    "one slow peer could take all memory: lower it, or raise `buffer-memory`".to_owned();
                problems.error(&size.span, message, help);
            }
        }
    }

    fn read_timing(&mut self, section: &mut Section<'_>, problems: &mut Problems) {
        if let Some(time) = section.duration_ms("sync-interval", problems) {
            self.sync_interval_ms = time.value;
            if !(1..=60_000).contains(&time.value) {
                problems.error(
                    &time.span,
                    "`sync-interval` is out of range; it may be \"1ms\" to \"1min\"",
                    None,
                );
            }
        }
        if let Some(time) = section.duration_ms("disk-timeout", problems) {
            self.disk_timeout_ms = time.value;
            if time.value != 0 && !(1000..=3_600_000).contains(&time.value) {
                problems.error(
                    &time.span,
                    "`disk-timeout` is out of range; it may be \"1s\" to \"1h\", or \"0s\" to wait for ever",
                    None,
                );
            }
        }
        let ping = section.duration_ms("ping-interval", problems);
        let timeout = section.duration_ms("peer-timeout", problems);
        if let Some(ping) = &ping {
            self.ping_interval_ms = ping.value;
            if !(10..=60_000).contains(&ping.value) {
                problems.error(
                    &ping.span,
                    "`ping-interval` is out of range; it may be \"10ms\" to \"1min\"",
                    None,
                );
            }
        }
        if let Some(timeout) = &timeout {
            self.peer_timeout_ms = timeout.value;
            if !(50..=3_600_000).contains(&timeout.value) {
                problems.error(
                    &timeout.span,
                    "`peer-timeout` is out of range; it may be \"50ms\" to \"1h\"",
                    None,
                );
            }
        }
        if self.peer_timeout_ms < self.ping_interval_ms.saturating_mul(2) {
            let span = timeout.or(ping).map_or(section.span.clone(), |time| time.span);
            let message = format!(
                "`peer-timeout` ({}) is less than twice `ping-interval` ({}): an idle peer would be given up",
                format_duration_ms(self.peer_timeout_ms),
                format_duration_ms(self.ping_interval_ms)
            );
            problems.error(
                &span,
                message,
                "a peer should miss several probes first, as in \"500ms\" and \"3s\"".to_owned(),
            );
        }
    }
}
