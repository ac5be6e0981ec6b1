//! Keeping a device attached: when its connections die, new ones are made as soon as the volume is served again
//! without anything lost. Requests wait in the kernel meanwhile.
//!
//! ```text
//!              a connection died            served, same generation
//!   Connected -------------------> Waiting -------------------------> Connected
//!       |                             | other generation; dead time over
//!       | identifier gone             v
//!       +--> Detached             GivenUp: the device is disconnected, what waits fails
//! ```

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::mm::MlockAllFlags;

use super::device::{self, Device};
use super::identity::Identity;
use crate::notify::notify;
use crate::output::say;
use crate::signals::StopFlag;

/// How often the device is looked at while all is well.
const PERIOD: Duration = Duration::from_secs(1);
/// How often the replicator is asked while it is away.
const RETRY: Duration = Duration::from_millis(100);

/// What can be done for a device of one of the kernel's drivers.
pub(crate) trait Keeper {
    /// Waits up to `limit`, or for a signal; says whether the device may have lost its server.
    fn wait(&mut self, limit: Duration) -> Result<bool>;

    /// Connects the device again if it has lost its server and the volume is served.
    fn connect(&mut self) -> Result<Attempt>;

    /// Has the device grow to what the volume has, if that is more than it has; says how many bytes that are. One size
    /// is tried once.
    fn follow_size(&mut self) -> Result<Option<u64>>;

    /// Ends the device: what is under way fails.
    fn disconnect(&mut self) -> Result<()>;
}

/// How one attempt to connect again ended.
pub(crate) enum Attempt {
    Connected,
    /// Not now, for this reason.
    Later(String),
    /// Never: what the device's users hold is of the past.
    OtherGeneration(Identity),
}

/// A device that is kept attached.
pub(crate) struct Follower {
    pub(crate) keeper: Box<dyn Keeper>,
    pub(crate) device: Device,
    pub(crate) identity: Identity,
    /// How long I/O may wait for a replicator.
    pub(crate) dead_time: Duration,
}

/// Where the device is on its way; see the picture above.
enum State {
    Connected,
    Waiting { since: Instant, is_announced: bool },
}

impl State {
    fn waiting() -> Self {
        Self::Waiting { since: Instant::now(), is_announced: false }
    }
}

impl Follower {
    /// Runs until the device is detached, cannot be kept, or a signal comes. A signal leaves it attached.
    pub(crate) fn run(mut self) -> Result<()> {
        let stop = StopFlag::install()?;
        serve_memory();
        notify("READY=1");
        // A connection may have died before anybody listened.
        let mut state = State::waiting();
        while !stop.is_set() {
            if self.device.identity().as_ref() != Some(&self.identity) {
                return self.ended();
            }
            state = match state {
                State::Connected => {
                    self.follow_size();
                    if self.keeper.wait(PERIOD)? { State::waiting() } else { State::Connected }
                }
                State::Waiting { since, is_announced } => self.connect_again(since, is_announced, &stop)?,
            };
        }
        say(&format!("{}: left attached; start this again to keep it so", self.identity.volume));
        Ok(())
    }

    /// A volume may grow while it is attached.
    fn follow_size(&mut self) {
        let (volume, path) = (&self.identity.volume, self.device.path());
        match self.keeper.follow_size() {
            Ok(None) => {}
            Ok(Some(bytes)) => say(&format!("{volume}: {} has {bytes} bytes now", path.display())),
            Err(error) => {
                say(&format!(
                    "{volume} has grown, and {} does not follow: {error:#}; detach and attach it",
                    path.display()
                ));
            }
        }
    }

    fn connect_again(&mut self, since: Instant, is_announced: bool, stop: &StopFlag) -> Result<State> {
        let (volume, waited) = (self.identity.volume.clone(), since.elapsed());
        let reason = match self.keeper.connect()? {
            Attempt::Connected => {
                if is_announced {
                    say(&format!("{volume}: connected again after {:.1} s", waited.as_secs_f64()));
                }
                return Ok(State::Connected);
            }
            Attempt::OtherGeneration(now) => {
                return self.give_up(&format!(
                    "another node wrote meanwhile, or acknowledged writes may be missing (generation {} became {})",
                    self.identity.generation, now.generation
                ));
            }
            Attempt::Later(reason) => reason,
        };
        if !is_announced {
            say(&format!("{volume}: connection lost, I/O waits: {reason}"));
        }
        if waited > self.dead_time {
            return self.give_up(&format!("nobody served it for {:?}", self.dead_time));
        }
        stop.sleep(RETRY);
        Ok(State::Waiting { since, is_announced: true })
    }

    /// The device is attached to nothing, or to something else: by our own `detach`, which takes the link first.
    fn ended(&self) -> Result<()> {
        if device::link_of(&self.identity.volume).exists() {
            bail!("{} was disconnected by somebody else", self.device.path().display());
        }
        say(&format!("{}: detached", self.identity.volume));
        Ok(())
    }

    fn give_up(&mut self, reason: &str) -> Result<State> {
        device::unlink(&self.identity.volume)?;
        self.keeper.disconnect()?;
        bail!(
            "{} is disconnected from {}: {reason}; unmount what lay on it and attach it again",
            self.device.path().display(),
            self.identity.volume
        )
    }
}

/// The kernel may wait for the device, and so for this process, to free memory. It does not ask this process for
/// memory then, has nothing of it to read back, and kills another one for it. Both need rights; without them it mostly works, too.
pub(super) fn serve_memory() {
    let locked = rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE);
    let flushing = rustix::process::configure_io_flusher_behavior(true);
    let secured =
        locked.and(flushing).map_err(std::io::Error::from).and_then(|()| replicator::spare_from_oom_killer());
    if let Err(error) = secured {
        say(&format!("cannot secure memory against writeback through the device itself: {error}"));
    }
}
