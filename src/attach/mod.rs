//! `holdfast attach` and `detach`: a volume as a block device of the kernel, `/dev/nbdN`.
//!
//! `netlink` talks to the kernel, `backend` to the replicator, `device` looks after what the system shows, `follow`
//! keeps the two connected. What a device is attached to is an `Identity`, which the kernel keeps: there is no state
//! file.

mod backend;
mod device;
mod follow;
mod identity;
mod netlink;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::cli::{AttachArgs, DetachArgs};
use crate::output::{human_bytes, print, print_json};
use crate::table::Table;
use crate::target;
use backend::Backend;
use device::Device;
use follow::Follower;
use identity::Identity;
use netlink::{Kernel, Settings};

/// Bit of the transmission flags: the export is read-only.
const FLAG_READ_ONLY: u16 = 1 << 1;
/// Bit of the transmission flags: a flush on one connection covers all.
const FLAG_MULTI_CONN: u16 = 1 << 8;
/// The kernel's logical blocks.
const BLOCK_BYTES: std::ops::RangeInclusive<u32> = 512..=4096;

/// With one connection a request is looked at again so often: sent anew if the connection was replaced, else left.
const LOOK_AGAIN_ONE: Duration = Duration::from_secs(2);
/// With several a request that is looked at costs its connection.
const LOOK_AGAIN_SEVERAL: Duration = Duration::from_secs(30);

/// What the caller wants.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    volume: String,
    connections: u8,
    dead_time: Duration,
    read_only: bool,
    block_bytes: Option<u32>,
    request_timeout: Option<Duration>,
}

impl Wish {
    fn new(arguments: &AttachArgs, volume: &str) -> Self {
        Self {
            volume: volume.to_owned(),
            connections: arguments.connections,
            dead_time: Duration::from_millis(arguments.dead_time),
            read_only: arguments.read_only,
            block_bytes: arguments.block_size,
            request_timeout: arguments.request_timeout.map(Duration::from_millis),
        }
    }

    fn look_again(&self) -> Duration {
        let default = if self.connections == 1 { LOOK_AGAIN_ONE } else { LOOK_AGAIN_SEVERAL };
        self.request_timeout.unwrap_or(default)
    }

    /// What the kernel is told of an export.
    fn settings(&self, backend: &Backend) -> Result<Settings> {
        let export = &backend.export;
        let block_bytes = self.block_bytes.unwrap_or(export.block_bytes.max(*BLOCK_BYTES.start()));
        if !BLOCK_BYTES.contains(&block_bytes) || block_bytes < export.block_bytes {
            bail!(
                "the kernel cannot use blocks of {block_bytes} bytes: the volume needs {} or more, the kernel 4096 or less",
                export.block_bytes
            );
        }
        if self.dead_time < Duration::from_secs(1) {
            bail!("the kernel counts the dead time in seconds: give it at least one");
        }
        if self.connections > 1 && export.flags & FLAG_MULTI_CONN == 0 {
            bail!("the volume is not served for several connections: attach it with one");
        }
        let read_only = if self.read_only { FLAG_READ_ONLY } else { 0 };
        Ok(Settings {
            size_bytes: export.size_bytes,
            block_bytes,
            flags: export.flags | read_only,
            dead_time: self.dead_time,
        })
    }
}

/// Attaches a volume, keeps it attached, or shows what is.
pub(crate) fn attach(arguments: &AttachArgs) -> Result<()> {
    let Some(volume) = arguments.volume.as_deref() else { return show(arguments.json) };
    let mut wish = Wish::new(arguments, volume);
    let client = target::client(&arguments.target)?;
    let mut kernel = Kernel::open()?;
    // Before there is anything to hear: no death is missed.
    let deaths = kernel.deaths()?;
    let backend = Backend::connect(&client, volume, wish.connections)
        .with_context(|| format!("{volume} is not attached"))?;
    let wanted = arguments.device.as_deref().map(Device::parse).transpose()?;
    let (device, how) = match find(&backend.identity)? {
        Some((device, identity)) => {
            wish.connections = device.connections()?;
            (take_over(&mut kernel, &backend, device, &identity, wanted)?, "already attached")
        }
        None => (make(&mut kernel, &wish, &backend, wanted)?, "attached"),
    };
    let link = device::link_of(volume);
    if arguments.json {
        print_json(&Attached::new(device, &backend.identity), false)?;
    } else {
        let size = human_bytes(backend.export.size_bytes);
        print(&format!("{volume} is {how} at {}, {}, {size}", device.path().display(), link.display()))?;
    }
    if !arguments.follow {
        return Ok(());
    }
    // The kernel has its own hold of the connections that it took; ours would keep dead ones half open.
    let identity = backend.identity;
    drop(backend.sockets);
    Follower { kernel, deaths, client, wish: &wish, device, identity }.run()
}

/// The device of the same volume, in whatever generation.
fn find(identity: &Identity) -> Result<Option<(Device, Identity)>> {
    Ok(device::attached()?.into_iter().find(|(_, other)| other.is_same_volume(identity)))
}

fn make(kernel: &mut Kernel, wish: &Wish, backend: &Backend, wanted: Option<Device>) -> Result<Device> {
    let settings = wish.settings(backend)?;
    let index = wanted.map(|device| device.index);
    let index = kernel.connect(index, &settings, &backend.identity.to_string(), &backend.sockets)?;
    let device = Device { index };
    let prepared = device
        .tune(backend.export.request_bytes_max, wish.look_again())
        .and_then(|()| device.link(&wish.volume));
    if let Err(error) = prepared {
        // Half a device is of no use to anybody.
        kernel.disconnect(index)?;
        return Err(error);
    }
    Ok(device)
}

/// The device is there already. If its connections died it gets these, else the kernel leaves them alone.
fn take_over(
    kernel: &mut Kernel,
    backend: &Backend,
    device: Device,
    identity: &Identity,
    wanted: Option<Device>,
) -> Result<Device> {
    let path = device.path();
    if wanted.is_some_and(|wanted| wanted != device) {
        bail!("{} is attached at {} already", identity.volume, path.display());
    }
    if *identity != backend.identity {
        bail!(
            "{} holds a past of {}, from before another node wrote or acknowledged writes went missing: unmount it, then \
             holdfast detach --force {}",
            path.display(),
            identity.volume,
            identity.volume
        );
    }
    kernel.reconfigure(device.index, &identity.to_string(), &backend.sockets)?;
    device.link(&identity.volume)?;
    Ok(device)
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
    let mut kernel = Kernel::open()?;
    if !arguments.force {
        device.settle()?;
    }
    // First the link: whoever follows the device sees by it that this was meant.
    device::unlink(&identity.volume)?;
    kernel.disconnect(device.index)?;
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
