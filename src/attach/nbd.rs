//! Attaching over the kernel's NBD client: making a device, taking one over, keeping it connected.

use std::time::Duration;

use anyhow::{Result, bail};

use super::backend::Backend;
use super::device::Device;
use super::exported::Exported;
use super::follow::{Attempt, Keeper};
use super::identity::Identity;
use super::netlink::{Deaths, Kernel, Settings};
use super::remote::Remote;
use super::{Attachment, Wish, refuse_past};

/// Bit of the transmission flags: the export is read-only.
const FLAG_READ_ONLY: u16 = 1 << 1;
/// Bit of the transmission flags: a flush on one connection covers all.
const FLAG_MULTI_CONN: u16 = 1 << 8;

/// With one connection a request is looked at again so often: sent anew if the connection was replaced, else left.
const LOOK_AGAIN_ONE: Duration = Duration::from_secs(2);
/// With several a request that is looked at costs its connection.
const LOOK_AGAIN_SEVERAL: Duration = Duration::from_secs(30);

/// Where a volume's connections come from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// The replicator on this host.
    Here(replicator::control::Client),
    /// Whichever node of another cluster serves it.
    Afar(Remote),
}

impl Source {
    fn connect(&self, volume: &str, connections: u8) -> Result<Backend> {
        match self {
            Self::Here(client) => Backend::connect(client, volume, connections),
            Self::Afar(remote) => remote.connect(volume, connections),
        }
    }
}

/// Attaches a volume, or gives fresh connections to a device that has it.
pub(super) fn attach(
    source: &Source,
    wish: &Wish,
    present: Option<(Device, Identity)>,
) -> Result<Attachment> {
    let mut kernel = Kernel::open()?;
    // Before there is anything to hear: no death is missed.
    let deaths = kernel.deaths()?;
    let connections = match &present {
        Some((device, _)) => device.connections()?,
        None => wish.connections,
    };
    let backend = source.connect(&wish.volume, connections)?;
    let is_new = present.is_none();
    let device = match present {
        Some((device, identity)) => {
            refuse_past(device, &identity, &backend.identity)?;
            kernel.reconfigure(device.index, &identity.to_string(), &backend.sockets)?;
            if device.size_bytes().is_some_and(|bytes| bytes < backend.export.size_bytes) {
                kernel.resize(device.index, &identity.to_string(), backend.export.size_bytes)?;
            }
            device.link(&identity.volume)?;
            device
        }
        None => make(&mut kernel, wish, &backend)?,
    };
    // The kernel has its own hold of the connections that it took; ours would keep dead ones half open.
    let Backend { identity, export, .. } = backend;
    let keeper = NbdKeeper {
        kernel,
        deaths,
        source: source.clone(),
        device,
        identity: identity.clone(),
        connections,
        told_bytes: export.size_bytes,
    };
    Ok(Attachment { device, identity, size_bytes: export.size_bytes, is_new, keeper: Box::new(keeper) })
}

/// Ends a device.
pub(super) fn detach(device: Device) -> Result<()> {
    Kernel::open()?.disconnect(device.index)?;
    device.announce();
    Ok(())
}

fn make(kernel: &mut Kernel, wish: &Wish, backend: &Backend) -> Result<Device> {
    let settings = settings(wish, backend)?;
    let index = wish.device.map(|device| device.index);
    let index = kernel.connect(index, &settings, &backend.identity.to_string(), &backend.sockets)?;
    let device = Device::nbd(index);
    let default = if wish.connections == 1 { LOOK_AGAIN_ONE } else { LOOK_AGAIN_SEVERAL };
    let prepared = device
        .tune(backend.export.request_bytes_max)
        .and_then(|()| device.look_again_after(wish.request_timeout.unwrap_or(default)))
        .and_then(|()| device.link(&wish.volume));
    if let Err(error) = prepared {
        // Half a device is of no use to anybody.
        kernel.disconnect(index)?;
        return Err(error);
    }
    Ok(device)
}

/// What the kernel is told of an export.
fn settings(wish: &Wish, backend: &Backend) -> Result<Settings> {
    let export = &backend.export;
    let block_bytes = wish.block_bytes(export.block_bytes)?;
    if wish.dead_time < Duration::from_secs(1) {
        bail!("the kernel counts the dead time in seconds: give it at least one");
    }
    if wish.connections > 1 && export.flags & FLAG_MULTI_CONN == 0 {
        bail!("the volume is not served for several connections: attach it with one");
    }
    let read_only = if wish.read_only { FLAG_READ_ONLY } else { 0 };
    Ok(Settings {
        size_bytes: export.size_bytes,
        block_bytes,
        flags: export.flags | read_only,
        dead_time: wish.dead_time,
    })
}

/// Gives new connections to a device when its own have died.
#[derive(Debug)]
struct NbdKeeper {
    kernel: Kernel,
    deaths: Deaths,
    source: Source,
    device: Device,
    identity: Identity,
    connections: u8,
    /// The size that the device was told last.
    told_bytes: u64,
}

impl Keeper for NbdKeeper {
    fn wait(&mut self, limit: Duration) -> Result<bool> {
        Ok(self.deaths.wait(self.device.index, limit)?)
    }

    fn connect(&mut self) -> Result<Attempt> {
        let backend = match self.source.connect(&self.identity.volume, self.connections) {
            Ok(backend) => backend,
            Err(error) => return Ok(Attempt::Later(format!("{error:#}"))),
        };
        if backend.identity != self.identity {
            return Ok(Attempt::OtherGeneration(backend.identity));
        }
        self.kernel.reconfigure(self.device.index, &self.identity.to_string(), &backend.sockets)?;
        Ok(Attempt::Connected)
    }

    fn follow_size(&mut self) -> Result<Option<u64>> {
        // Who serves it elsewhere says its size to new connections alone.
        let Source::Here(client) = &self.source else { return Ok(None) };
        let grown = Exported::grown(client, &self.identity, self.device.size_bytes());
        let Some(bytes) = grown.filter(|bytes| *bytes != self.told_bytes) else { return Ok(None) };
        self.told_bytes = bytes;
        self.kernel.resize(self.device.index, &self.identity.to_string(), bytes)?;
        Ok(Some(bytes))
    }

    fn disconnect(&mut self) -> Result<()> {
        self.kernel.disconnect(self.device.index)?;
        self.device.announce();
        Ok(())
    }
}
