//! Attaching over the kernel's ublk driver: the device is made, handed over and ended here, and served by the
//! replicator's reactor.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use replicator::control::Client;
use replicator::control::json::AttachUblk;
use replicator::ublk::{self, Control, ControlError, DeviceInfo, DeviceState, NewDevice};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::device::Device;
use super::exported::Exported;
use super::follow::{Attempt, Keeper};
use super::identity::Identity;
use super::record::{Record, mark_of};
use super::{Attachment, Wish, refuse_past};

/// The kernel is better at whole pages.
const PHYSICAL_BLOCK_BYTES: u32 = 4096;
/// How long the kernel may take to see that a server is gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked meanwhile.
const RETRY: Duration = Duration::from_millis(50);

/// Attaches a volume, or hands a device that has it to the replicator that serves it now.
pub(super) fn attach(
    client: &Client,
    wish: &Wish,
    present: Option<(Device, Identity)>,
) -> Result<Attachment> {
    let mut control = Control::open()?;
    let exported = Exported::served(client, &wish.volume)?;
    let is_new = present.is_none();
    let device = match present {
        Some((device, identity)) => {
            refuse_past(device, &identity, &exported.identity)?;
            let end = Instant::now() + PATIENCE;
            while let Step::Later(reason) = hand_over(&mut control, client, device, &exported)? {
                if Instant::now() >= end {
                    bail!("{} cannot be taken over: {reason}", device.path().display());
                }
                std::thread::sleep(RETRY);
            }
            device.link(&identity.volume)?;
            device
        }
        None => make(&mut control, client, wish, &exported)?,
    };
    let identity = exported.identity;
    let told_bytes = device.size_bytes().unwrap_or(exported.size_bytes);
    let keeper =
        UblkKeeper { control, client: client.clone(), device, identity: identity.clone(), told_bytes };
    Ok(Attachment { device, identity, size_bytes: exported.size_bytes, is_new, keeper: Box::new(keeper) })
}

/// Ends a device. By force its requests fail first, whatever they wait for.
pub(super) fn detach(device: Device, force: bool) -> Result<()> {
    let record = Record::read(device.index)
        .with_context(|| format!("{} has no record of what it is attached to", device.path().display()))?;
    end(&mut Control::open()?, &Client::new(&record.control), device, &record.identity, force)
}

fn make(control: &mut Control, client: &Client, wish: &Wish, exported: &Exported) -> Result<Device> {
    sweep(control, &wish.volume)?;
    let logical_block_bytes = wish.block_bytes(exported.block_bytes)?;
    let info = control.add(&NewDevice {
        index: wish.device.map(|device| device.index),
        size_bytes: exported.size_bytes,
        logical_block_bytes,
        physical_block_bytes: PHYSICAL_BLOCK_BYTES.max(logical_block_bytes),
        read_only: wish.read_only,
        mark: mark_of(&exported.identity),
    })?;
    let device = Device::ublk(info.index);
    if let Err(error) = start(control, client, exported, &info) {
        // Half a device is of no use to anybody.
        end(control, client, device, &exported.identity, true)?;
        return Err(error);
    }
    Ok(device)
}

fn start(control: &mut Control, client: &Client, exported: &Exported, info: &DeviceInfo) -> Result<()> {
    let (device, identity) = (Device::ublk(info.index), &exported.identity);
    Record { identity: identity.clone(), control: client.path().to_owned() }.write(info.index)?;
    serve(client, identity, info)?;
    control.start(info.index, exported.pid)?;
    device.tune(ublk::REQUEST_BYTES_MAX)?;
    device.limit_requests(ublk::REQUESTS_MAX)?;
    device.link(&identity.volume)
}

/// Has the replicator take requests of a device.
fn serve(client: &Client, identity: &Identity, info: &DeviceInfo) -> Result<()> {
    let request = AttachUblk { index: info.index, generation: identity.generation, tags: info.tags };
    client.attach_ublk(&identity.volume, request)?;
    Ok(())
}

/// Forgets devices of a volume that were made and never started: whoever made them was killed.
fn sweep(control: &mut Control, volume: &str) -> Result<()> {
    for (index, record) in Record::all() {
        if record.identity.volume != volume || Device::ublk(index).identity().is_some() {
            continue;
        }
        let is_ours =
            |info: &DeviceInfo| info.state == DeviceState::Dead && info.mark == mark_of(&record.identity);
        if control.info(index).is_ok_and(|info| is_ours(&info)) {
            control.delete(index)?;
        }
        Record::remove(index)?;
    }
    Ok(())
}

fn end(
    control: &mut Control,
    client: &Client,
    device: Device,
    identity: &Identity,
    force: bool,
) -> Result<()> {
    if force {
        // Where nobody serves it any more there is nothing to fail but what waits in the kernel.
        let _ = client.break_ublk(&identity.volume, device.index);
    }
    match control.stop(device.index).and_then(|()| control.delete(device.index)) {
        Ok(()) | Err(ControlError::NoDevice(_)) => Record::remove(device.index),
        Err(error) => Err(error.into()),
    }
}

/// What came of an attempt to hand a device over.
enum Step {
    Done,
    /// Not now, for this reason.
    Later(String),
}

/// Gives a device to the replicator that serves its volume now, unless that has it already.
fn hand_over(control: &mut Control, client: &Client, device: Device, exported: &Exported) -> Result<Step> {
    let info = match control.info(device.index) {
        Err(ControlError::NoDevice(_)) => return Ok(Step::Later("it is being detached".to_owned())),
        other => other?,
    };
    if info.mark != mark_of(&exported.identity) {
        bail!(
            "{} is not the device that was attached to {}",
            device.path().display(),
            exported.identity.volume
        );
    }
    if exported.ublk.is_some_and(|ublk| ublk.index == device.index && ublk.broken) {
        return Ok(Step::Later(
            "its requests fail, as it was being detached: holdfast detach --force".to_owned(),
        ));
    }
    let has_it = exported.ublk.is_some_and(|ublk| ublk.index == device.index);
    match info.state {
        DeviceState::Live if has_it => Ok(Step::Done),
        DeviceState::Live => Ok(Step::Later("the kernel waits for the end of the old replicator".to_owned())),
        DeviceState::Quiesced => {
            if !has_it {
                match control.begin_recovery(device.index) {
                    Err(ControlError::Busy) => return Ok(Step::Later(ControlError::Busy.to_string())),
                    // It was begun for a replicator that died before it had the device.
                    Err(ControlError::Refused { source, .. })
                        if Errno::from_io_error(&source) == Some(Errno::INVAL) => {}
                    other => other?,
                }
                serve(client, &exported.identity, &info)?;
            }
            control.end_recovery(device.index, exported.pid)?;
            Ok(Step::Done)
        }
        DeviceState::Dead | DeviceState::Other(_) => Ok(Step::Later("it is stopped".to_owned())),
    }
}

/// Hands a device to each replicator that serves its volume.
#[derive(Debug)]
struct UblkKeeper {
    control: Control,
    client: Client,
    device: Device,
    identity: Identity,
    /// The size that the device was told last.
    told_bytes: u64,
}

impl Keeper for UblkKeeper {
    /// There is always reason to look: the generation may be over while the replicator lives.
    fn wait(&mut self, limit: Duration) -> Result<bool> {
        let pid = self.control.info(self.device.index).map_or(0, |info| info.server_pid);
        let Some(pid) = Pid::from_raw(pid) else { return Ok(true) };
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(true) };
        let limit = Timespec::try_from(limit).expect("a limit in seconds");
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)) {
            Ok(_) | Err(Errno::INTR) => Ok(true),
            Err(error) => Err(error).context("cannot wait for the replicator"),
        }
    }

    fn connect(&mut self) -> Result<Attempt> {
        let exported = match Exported::ask(&self.client, &self.identity.volume) {
            Ok(exported) => exported,
            Err(error) => return Ok(Attempt::Later(format!("{error:#}"))),
        };
        if exported.identity != self.identity {
            return Ok(Attempt::OtherGeneration(exported.identity));
        }
        if let Some(refusal) = exported.refusal {
            return Ok(Attempt::Later(refusal));
        }
        match hand_over(&mut self.control, &self.client, self.device, &exported) {
            Ok(Step::Done) => Ok(Attempt::Connected),
            Ok(Step::Later(reason)) => Ok(Attempt::Later(reason)),
            // The replicator may have been killed meanwhile.
            Err(error) => Ok(Attempt::Later(format!("{error:#}"))),
        }
    }

    fn follow_size(&mut self) -> Result<Option<u64>> {
        let grown = Exported::grown(&self.client, &self.identity, self.device.size_bytes());
        let Some(bytes) = grown.filter(|bytes| *bytes != self.told_bytes) else { return Ok(None) };
        self.told_bytes = bytes;
        self.control.resize(self.device.index, bytes)?;
        Ok(Some(bytes))
    }

    fn disconnect(&mut self) -> Result<()> {
        end(&mut self.control, &self.client, self.device, &self.identity, true)
    }
}
