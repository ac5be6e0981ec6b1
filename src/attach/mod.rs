//! `holdfast attach` and `detach`: a volume as a block device of the kernel, `/dev/nbdN` or `/dev/ublkbN`.
//!
//! `nbd` and `ublk` make and end devices: the one speaks to the kernel by `netlink` and gets connections from
//! `backend`, the other uses `replicator::ublk`. `exported` is what the replicator says of a volume, `device` looks
//! after what the system shows, `follow` keeps a device connected. What a device is attached to is an `Identity`,
//! which the kernel keeps; of ublk devices it keeps a hash, and `record` the rest.

mod backend;
mod device;
mod exported;
mod follow;
mod identity;
mod nbd;
mod netlink;
mod record;
mod remote;
mod ublk;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::cli::{AttachArgs, DetachArgs};
use crate::output::{human_bytes, print, print_json};
use crate::table::Table;
use crate::target;
use device::{Device, Driver};
use exported::Exported;
use follow::{Follower, Keeper};
use identity::Identity;
use nbd::Source;
use remote::Remote;

/// The kernel's logical blocks.
const BLOCK_BYTES: std::ops::RangeInclusive<u32> = 512..=4096;

/// What the caller wants.
#[derive(Clone, Debug)]
struct Wish {
    volume: String,
    driver: Driver,
    device: Option<Device>,
    connections: u8,
    dead_time: Duration,
    read_only: bool,
    block_bytes: Option<u32>,
    request_timeout: Option<Duration>,
}

impl Wish {
    fn new(arguments: &AttachArgs, volume: &str) -> Result<Self> {
        let driver = if arguments.ublk { Driver::Ublk } else { Driver::Nbd };
        let device = arguments.device.as_deref().map(Device::parse).transpose()?;
        if let Some(device) = device
            && device.driver != driver
        {
            let cure = if arguments.ublk { "leave out --ublk" } else { "say --ublk" };
            bail!("{} is a device of another driver: {cure}", device.path().display());
        }
        Ok(Self {
            volume: volume.to_owned(),
            driver,
            device,
            connections: arguments.connections,
            dead_time: Duration::from_millis(arguments.dead_time),
            read_only: arguments.read_only,
            block_bytes: arguments.block_size,
            request_timeout: arguments.request_timeout.map(Duration::from_millis),
        })
    }

    /// Bytes of the device's logical blocks, for a volume with blocks of so many.
    fn block_bytes(&self, volume_block_bytes: u32) -> Result<u32> {
        let block_bytes = self.block_bytes.unwrap_or(volume_block_bytes.max(*BLOCK_BYTES.start()));
        let is_possible = BLOCK_BYTES.contains(&block_bytes) && block_bytes.is_power_of_two();
        if !is_possible || block_bytes < volume_block_bytes {
            bail!(
                "the kernel cannot use blocks of {block_bytes} bytes: the volume needs {volume_block_bytes} or more, \
                 the kernel a power of two up to 4096"
            );
        }
        Ok(block_bytes)
    }
}

/// A device that has the volume now.
struct Attachment {
    device: Device,
    identity: Identity,
    size_bytes: u64,
    is_new: bool,
    keeper: Box<dyn Keeper>,
}

/// Attaches a volume, keeps it attached, or shows what is.
pub(crate) fn attach(arguments: &AttachArgs) -> Result<()> {
    let Some(volume) = arguments.volume.as_deref() else { return show(arguments.json) };
    let wish = Wish::new(arguments, volume)?;
    let attached = attach_as(&wish, arguments).with_context(|| format!("{volume} is not attached"))?;
    let link = device::link_of(volume);
    if arguments.json {
        print_json(&Attached::new(attached.device, &attached.identity), false)?;
    } else {
        let how = if attached.is_new { "attached" } else { "already attached" };
        let (path, size) = (attached.device.path(), human_bytes(attached.size_bytes));
        print(&format!("{volume} is {how} at {}, {}, {size}", path.display(), link.display()))?;
    }
    if !arguments.follow {
        return Ok(());
    }
    let Attachment { device, identity, keeper, .. } = attached;
    Follower { keeper, device, identity, dead_time: wish.dead_time }.run()
}

fn attach_as(wish: &Wish, arguments: &AttachArgs) -> Result<Attachment> {
    if let Some(certificates) = &arguments.certificates {
        let remote = Remote::new(&arguments.remote, certificates)?;
        // There is nobody here to ask which volume of that name is meant: the one that was attached here before.
        let present = device::attached()?.into_iter().find(|(_, other)| other.volume == wish.volume);
        check_place(wish, present.as_ref())?;
        return nbd::attach(&Source::Afar(remote), wish, present);
    }
    let client = &target::client(&arguments.target)?;
    let exported = Exported::served(client, &wish.volume)?;
    let present = device::attached()?.into_iter().find(|(_, other)| other.is_same_volume(&exported.identity));
    check_place(wish, present.as_ref())?;
    match wish.driver {
        Driver::Nbd => nbd::attach(&Source::Here(client.clone()), wish, present),
        Driver::Ublk => ublk::attach(client, wish, present),
    }
}

/// Refuses to attach at two places.
fn check_place(wish: &Wish, present: Option<&(Device, Identity)>) -> Result<()> {
    if let Some((device, _)) = present
        && (device.driver != wish.driver || wish.device.is_some_and(|wanted| wanted != *device))
    {
        bail!("{} is attached at {} already", wish.volume, device.path().display());
    }
    Ok(())
}

/// Refuses to connect a device that holds what is no longer so.
fn refuse_past(device: Device, identity: &Identity, now: &Identity) -> Result<()> {
    if identity == now {
        return Ok(());
    }
    bail!(
        "{} holds a past of {}, from before another node wrote or acknowledged writes went missing: unmount it, then \
         holdfast detach --force {}",
        device.path().display(),
        identity.volume,
        identity.volume
    );
}

/// Detaches a volume, or a device.
pub(crate) fn detach(arguments: &DetachArgs) -> Result<()> {
    let attached = device::attached()?;
    let is_meant = |device: Device, identity: &Identity| {
        identity.volume == arguments.what || Device::parse(&arguments.what).is_ok_and(|meant| meant == device)
    };
    let Some((device, identity)) =
        attached.into_iter().find(|(device, identity)| is_meant(*device, identity))
    else {
        bail!("{} is attached nowhere: see holdfast attach --status", arguments.what);
    };
    if !arguments.force {
        device.settle()?;
    }
    // First the link: whoever follows the device sees by it that this was meant.
    device::unlink(&identity.volume)?;
    match device.driver {
        Driver::Nbd => nbd::detach(device)?,
        Driver::Ublk => ublk::detach(device, arguments.force)?,
    }
    print(&format!("{} is detached from {}", identity.volume, device.path().display()))
}

/// One attached device.
#[derive(Debug, Serialize)]
struct Attached {
    volume: String,
    device: String,
    node: String,
    uuid: String,
    generation: u64,
    size_bytes: Option<u64>,
}

impl Attached {
    fn new(device: Device, identity: &Identity) -> Self {
        Self {
            volume: identity.volume.clone(),
            device: device.path().display().to_string(),
            node: identity.node.clone(),
            uuid: identity.uuid.clone(),
            generation: identity.generation,
            size_bytes: device.size_bytes(),
        }
    }
}

/// Shows what is attached on this host.
fn show(json: bool) -> Result<()> {
    let attached: Vec<Attached> =
        device::attached()?.iter().map(|(device, identity)| Attached::new(*device, identity)).collect();
    if json {
        return print_json(&attached, true);
    }
    if attached.is_empty() {
        return print("nothing is attached");
    }
    let mut table = Table::new(0, &["volume", "device", "size", "node", "generation"]);
    for line in attached {
        let size = line.size_bytes.map(human_bytes).unwrap_or_default();
        table.row([line.volume, line.device, size, line.node, line.generation.to_string()]);
    }
    print(&table.render())
}
