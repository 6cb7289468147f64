//! Sleep and wake of the whole process: which tags and devices, one operation a device at a time, several
//! devices at once.

use super::{DeviceEntry, Process, lifetime, tags};
use crate::config::table::Opt;
use crate::core::sync::{lock, try_lock};
use crate::core::tags::TagId;
use crate::error::{Error, Result, Status};
use crate::extent::table::Residency;
use crate::gpu::Device;
use crate::residency::{self, Choice, HostUse, Manner, OnHost, Report, Site};
use crate::sys::linux;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

pub use crate::residency::To;

/// What is to sleep or to wake.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The tags, in their order; everything where there is none, the untagged included.
    pub tags: Option<Vec<String>>,
    /// The device; every one in use where none is named.
    pub device: Option<i32>,
    /// Stretches of segments in which whoever divides them up has nothing: first address and length.
    pub dead: Vec<(u64, u64)>,
}

/// How to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    /// Where contents go.
    pub to: To,
    /// Whether nothing was written since the last wake.
    pub is_clean: bool,
    /// Whether the addresses read as zeros meanwhile.
    pub is_guarded: bool,
}

impl From<To> for How {
    fn from(to: To) -> How {
        How {
            to,
            is_clean: false,
            is_guarded: false,
        }
    }
}

/// What became of a stretch of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Change {
    /// It sleeps: nothing is behind its addresses.
    Asleep = 0,
    /// It is awake, with other memory behind its addresses than before.
    Remapped = 1,
}

/// Told of stretches: device, first address, length in bytes.
pub type Listener = Box<dyn Fn(i32, u64, u64, Change) + Send + Sync>;

/// Who is told, if anybody is.
#[derive(Default)]
pub(super) struct Listening(Mutex<Option<Arc<Listener>>>);

/// Where the contents of memory are, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Whereabouts {
    /// In the device's memory.
    pub device: u64,
    /// On the host.
    pub host: u64,
    /// In files.
    pub file: u64,
    /// Nowhere, at addresses that are held.
    pub discarded: u64,
    /// The part of `device` that stays there.
    pub pinned: u64,
}

impl Process {
    /// Takes the chunks from memory of the tags, after all work that its devices were given so far; what
    /// is in it goes where `how` says. On failure everything is awake as before, but what the error says.
    pub fn sleep(&self, request: &Request, how: How) -> Result<Report> {
        let mut report = Report::default();
        self.sleep_reporting(request, how, &mut report)?;
        Ok(report)
    }

    /// [`Process::sleep`]; after an error the report is of what was done all the same.
    pub fn sleep_reporting(&self, request: &Request, how: How, report: &mut Report) -> Result<()> {
        let choice = choice("sleep", request)?;
        *report = Report::of_tags(choice.tags.as_deref().unwrap_or_default());
        let mut dead = request.dead.clone();
        let is_endless = |(begin, bytes): &&(u64, u64)| begin.checked_add(*bytes).is_none();
        if let Some((begin, bytes)) = dead.iter().find(is_endless) {
            let detail = format!("{bytes} bytes at {begin:#x} are no stretch of memory");
            return Err(Error::invalid("sleep", detail));
        }
        dead.sort_unstable();
        let manner = Manner {
            to: how.to,
            is_clean: how.is_clean,
            is_guarded: how.is_guarded,
            budget: self.host_budget(),
            folder: self.sleep_folder(),
        };
        let done = self.on_each("sleep", request.device, report, |site, report| {
            residency::sleep(
                &self.pools,
                site,
                &self.stores,
                &choice,
                &dead,
                &manner,
                report,
            )
        });
        self.tell(done, &report.ranges, Change::Asleep)
    }

    /// Puts chunks behind memory of the tags again and fills them, in the order of the tags. On failure all
    /// that slept on the device sleeps on.
    pub fn wake(&self, request: &Request) -> Result<Report> {
        let mut report = Report::default();
        self.wake_reporting(request, &mut report)?;
        Ok(report)
    }

    /// [`Process::wake`]; after an error the report is of what was done all the same.
    pub fn wake_reporting(&self, request: &Request, report: &mut Report) -> Result<()> {
        self.wake_keeping(request, None, report)
    }

    /// [`Process::wake_reporting`], which keeps so many bytes on the host where a number is named.
    pub fn wake_keeping(
        &self,
        request: &Request,
        keep: Option<u64>,
        report: &mut Report,
    ) -> Result<()> {
        let choice = choice("wake", request)?;
        *report = Report::of_tags(choice.tags.as_deref().unwrap_or_default());
        let usual = || self.settings.size(Opt::KeepHost).of(linux::total_memory());
        let keep = keep.unwrap_or_else(usual);
        let done = self.on_each("wake", request.device, report, |site, report| {
            let mut wake = || residency::wake(&self.pools, site, &choice, keep, report);
            wake().or_else(|error| {
                let device = site.state.device.ordinal();
                match error.status() {
                    // What is cached makes room.
                    Status::OutOfMemory if self.trim(device, 0).is_ok_and(|bytes| bytes > 0) => {
                        wake()
                    }
                    _ => Err(error),
                }
            })
        });
        self.tell(done, &report.ranges, Change::Remapped)
    }

    /// Has `listener` told of every stretch that falls asleep or is mapped anew, on the thread that asked for
    /// it, after it was done; nobody where there is none.
    pub fn set_residency_listener(&self, listener: Option<Listener>) {
        *lock(&self.listening.0) = listener.map(Arc::new);
    }

    fn tell(&self, done: Done, ranges: &[(i32, u64, u64)], change: Change) -> Result<()> {
        let listener = lock(&self.listening.0).clone();
        if let Some(listener) = listener {
            for (device, address, bytes) in ranges {
                listener(*device, *address, *bytes, change);
            }
            for (device, address, bytes) in &done.remapped {
                listener(*device, *address, *bytes, Change::Remapped);
            }
            for (device, address, bytes) in &done.stuck {
                listener(*device, *address, *bytes, Change::Asleep);
            }
        }
        done.failed.map_or(Ok(()), Err)
    }

    /// What pool memory was saved to in which no block is left goes, unless somebody is about to sleep or wake.
    pub(super) fn forget_dead(&self, device: &DeviceEntry) {
        let turn = try_lock(device.residency_turn());
        if let (Some(_turn), Some(pool)) = (turn, device.pool_in_use()) {
            self.pools.forget_dead(pool);
        }
    }

    /// Pins room on the host until `bytes` are free, for sleeps to come; needs a device in use.
    pub fn prepare_host(&self, bytes: u64) -> Result<()> {
        lifetime::check_not_forked()?;
        residency::prepare(
            &self.pinning_device()?,
            &self.stores.host,
            bytes,
            self.host_budget(),
        )
    }

    /// Gives free room on the host back to the system, down to `keep` bytes; the bytes given back.
    pub fn trim_host(&self, keep: u64) -> Result<u64> {
        lifetime::check_not_forked()?;
        Ok(self.stores.host.trim(keep))
    }

    /// What is pinned for sleep.
    pub fn host_use(&self) -> HostUse {
        self.stores.host.in_use()
    }

    /// What contradicts itself in the room on the host.
    pub fn audit_host(&self) -> std::result::Result<(), String> {
        self.stores.host.audit()
    }

    fn sleep_folder(&self) -> PathBuf {
        match self.settings.text(Opt::SleepDir) {
            named if named.is_empty() => std::env::temp_dir(),
            named => named.into(),
        }
    }

    fn host_budget(&self) -> u64 {
        let limit = self.settings.size(Opt::SleepHostLimit);
        limit.of(linux::total_memory())
    }

    /// Where memory is: of one tag where one is named, of one device or of all in use.
    pub fn whereabouts(&self, device: Option<i32>, tag: Option<&str>) -> Result<Whereabouts> {
        let request = Request {
            tags: tag.map(|tag| vec![tag.to_owned()]),
            device,
            dead: Vec::new(),
        };
        let choice = choice("residency", &request)?;
        let mut sum = Whereabouts::default();
        for device in self.chosen(device)? {
            for place in device.state().extents.places(|tag| choice.has(tag)) {
                *match place.residency {
                    Residency::Mapped => &mut sum.device,
                    Residency::Host => &mut sum.host,
                    Residency::File => &mut sum.file,
                    Residency::Discarded => &mut sum.discarded,
                } += place.bytes;
                if place.is_pinned && place.residency == Residency::Mapped {
                    sum.pinned += place.bytes;
                }
            }
        }
        Ok(sum)
    }

    /// Where a stretch of memory was last saved to the host, if all of it was and is kept.
    pub fn on_host(&self, address: u64, bytes: u64) -> Result<Option<OnHost>> {
        lifetime::check_not_forked()?;
        let device = (self.devices_in_use()).find(|device| device.state().extents.has(address));
        Ok(device.and_then(|device| OnHost::find(&device.state().extents, address, bytes)))
    }

    /// Keeps the chunks behind a stretch of memory where they are, until as many calls of
    /// [`Process::unpin`].
    pub fn pin(&self, address: u64, bytes: u64) -> Result<()> {
        let device = self.device_of("pin", address)?;
        // What is about to sleep was looked at already.
        let _turn = lock(device.residency_turn());
        device.state().extents.pin(address, bytes)
    }

    /// Undoes one [`Process::pin`] of the same stretch.
    pub fn unpin(&self, address: u64, bytes: u64) -> Result<()> {
        self.device_of("unpin", address)?
            .state()
            .extents
            .unpin(address, bytes)
    }

    pub(super) fn device_of(
        &self,
        operation: &'static str,
        address: u64,
    ) -> Result<&Arc<DeviceEntry>> {
        lifetime::check_not_forked()?;
        let mut devices = self.devices_in_use();
        devices
            .find(|device| device.state().extents.has(address))
            .ok_or_else(|| {
                Error::new(Status::NotOwned, operation)
                    .detail(format!("{address:#x} is in no memory that can be moved"))
                    .advice("Blocks of the vmm kind, of the pool over it and segments of MemPools can be")
            })
    }

    fn chosen(&self, device: Option<i32>) -> Result<Vec<&Arc<DeviceEntry>>> {
        lifetime::check_not_forked()?;
        match device {
            None => Ok(self.devices_in_use().collect()),
            Some(ordinal) => Ok(self.device_in_use(ordinal)?.into_iter().collect()),
        }
    }

    /// Runs an operation on the devices, each on a thread of its own where there are several. What some did
    /// stays where others fail; the error says which.
    fn on_each(
        &self,
        operation: &'static str,
        device: Option<i32>,
        report: &mut Report,
        act: impl Fn(&Site, &mut Report) -> Result<()> + Sync,
    ) -> Done {
        let devices = match self.chosen(device) {
            Ok(devices) => devices,
            Err(error) => return Done::failed(error),
        };
        let on = |device: &DeviceEntry| {
            let _turn = lock(device.residency_turn());
            let site = Site {
                state: device.state().clone(),
                pool: device.pool_in_use().cloned(),
                users: self.devices_in_use().map(gpu_of).collect(),
            };
            let mut report = Report::default();
            let outcome = act(&site, &mut report);
            (report, outcome)
        };
        let outcomes: Vec<(Report, Result<()>)> = match &devices[..] {
            [device] => vec![on(device)],
            devices => std::thread::scope(|scope| {
                let on = &on;
                let threads: Vec<_> = (devices.iter())
                    .map(|device| scope.spawn(move || on(device)))
                    .collect();
                let panicked = |_| {
                    let error = Error::new(Status::Internal, operation);
                    (Report::default(), Err(error.detail("a thread panicked")))
                };
                (threads.into_iter())
                    .map(|thread| thread.join().unwrap_or_else(panicked))
                    .collect()
            }),
        };
        let (mut remapped, mut stuck) = (Vec::new(), Vec::new());
        let mut failed = Vec::new();
        for (device, (done, outcome)) in devices.iter().zip(outcomes) {
            match outcome {
                Ok(()) => report.add(done),
                Err(error) => {
                    remapped.extend(done.ranges);
                    stuck.extend(done.stuck);
                    report.add(Report {
                        by_tag: done.by_tag,
                        ..Report::default()
                    });
                    failed.push((device.state().device.ordinal(), error));
                }
            }
        }
        let failed = failed.pop().map(|(ordinal, error)| {
            if devices.len() == 1 {
                return error;
            }
            let rest: Vec<String> = (failed.iter())
                .map(|(at, error)| format!("{at}: {error}"))
                .collect();
            error.advice(format!(
                "That was device {ordinal}; {} of {} devices are done. {}",
                devices.len() - failed.len() - 1,
                devices.len(),
                rest.join("; ")
            ))
        });
        Done {
            remapped,
            stuck,
            failed,
        }
    }
}

/// What went wrong on one device or more.
struct Done {
    /// Where that went wrong, what had lost its chunks and has others now.
    remapped: Vec<(i32, u64, u64)>,
    /// What had lost its chunks and did not come back.
    stuck: Vec<(i32, u64, u64)>,
    failed: Option<Error>,
}

impl Done {
    fn failed(error: Error) -> Done {
        Done {
            remapped: Vec::new(),
            stuck: Vec::new(),
            failed: Some(error),
        }
    }
}

fn gpu_of(device: &Arc<DeviceEntry>) -> Arc<Device> {
    device.state().device.clone()
}

fn choice(operation: &'static str, request: &Request) -> Result<Choice> {
    let Some(names) = &request.tags else {
        return Ok(Choice::default());
    };
    let tag = |name: &String| {
        if name.is_empty() {
            return Ok(TagId::NONE);
        }
        tags::table().find(name)?.ok_or_else(|| {
            let known: Vec<String> = (tags::table().list().iter())
                .map(|(_, name)| name.to_string())
                .collect();
            Error::invalid(operation, format!("no memory has had the tag {name:?}"))
                .advice(format!("Tags so far: {}", known.join(", ")))
        })
    };
    Ok(Choice {
        tags: Some(names.iter().map(tag).collect::<Result<_>>()?),
    })
}
