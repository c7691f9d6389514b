//! What the machine itself can do, in the same units as the scenarios.

use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use tempfile::TempDir;
use vmm_sys_util::eventfd::EventFd;
use vsock_packet::HEADER_LEN;

use crate::count::Count;
use crate::driver::{MAX_PAYLOAD, RX_BUFFER};
use crate::noise::{Noise, Watch};
use crate::placement::{Placement, Side};
use crate::relay;
use crate::ring::SIZE;
use crate::scenario::Unit;
use crate::statistics::median;
use crate::stream::BUF_ALLOC;

/// A limit of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Limit {
    /// Copying 64 KiB blocks within the caches.
    CopyInCache,
    /// Copying 64 KiB blocks of a window into the RX buffers of a ring, one after the other:
    /// what a packet between siblings takes at least.
    CopyToBuffers,
    /// Copying 1 GiB through memory.
    CopyInMemory,
    /// An AF_UNIX stream from the device's side to the applications' with writes of so many
    /// bytes.
    UnixStream(usize),
    /// The same the other way.
    UnixStreamBack(usize),
    /// AF_UNIX connections that one thread opens and closes, as fast as another accepts them
    /// and reads their end.
    UnixConnect,
    /// One byte to another thread and back, over AF_UNIX.
    UnixPingPong,
    /// The same over two eventfds.
    EventfdPingPong,
    /// One byte from a guest to a host application and back, by a device that only passes it
    /// on.
    HostRelay,
    /// The same between siblings.
    SiblingRelay,
}

impl Limit {
    pub(crate) const ALL: [Self; 13] = [
        Self::CopyInCache,
        Self::CopyToBuffers,
        Self::CopyInMemory,
        Self::UnixStream(64 << 10),
        Self::UnixStream(4 << 10),
        Self::UnixStream(64),
        Self::UnixStreamBack(64 << 10),
        Self::UnixStreamBack(64),
        Self::UnixConnect,
        Self::UnixPingPong,
        Self::EventfdPingPong,
        Self::HostRelay,
        Self::SiblingRelay,
    ];

    pub(crate) fn name(self) -> String {
        match self {
            Self::CopyInCache => "memcpy, 64 KiB blocks in cache".into(),
            Self::CopyToBuffers => "memcpy, 64 KiB blocks to RX buffers".into(),
            Self::CopyInMemory => "memcpy, 1 GiB through memory".into(),
            Self::UnixStream(len) => format!("AF_UNIX stream, writes of {len} bytes"),
            Self::UnixStreamBack(len) => format!("AF_UNIX stream back, writes of {len} bytes"),
            Self::UnixConnect => "AF_UNIX connections".into(),
            Self::UnixPingPong => "ping-pong over AF_UNIX".into(),
            Self::EventfdPingPong => "ping-pong over eventfds".into(),
            Self::HostRelay => "bare relay guest-host".into(),
            Self::SiblingRelay => "bare relay siblings".into(),
        }
    }

    /// What it is a number of.
    pub(crate) fn unit(self) -> Unit {
        match self {
            Self::UnixPingPong | Self::EventfdPingPong => Unit::Seconds,
            Self::HostRelay | Self::SiblingRelay => Unit::Seconds,
            Self::UnixConnect => Unit::Connections,
            _ => Unit::Rate,
        }
    }

    /// The same as [`Self::measure`], and what else the machine did.
    pub(crate) fn measure_watched(
        self,
        cores: Placement,
        time: Duration,
    ) -> Result<(Option<f64>, Noise)> {
        let watch = Watch::start()?;
        let value = self.measure(cores, time)?;
        Ok((Some(value), watch.stop(Duration::ZERO)?))
    }

    /// Bytes or connections per second, or seconds of a round trip.
    pub(crate) fn measure(self, cores: Placement, time: Duration) -> Result<f64> {
        let alone = |copy: fn(Duration) -> f64| cores.on(Side::Device, || Ok(copy(time)));
        match self {
            Self::CopyInCache => alone(|time| copy(64 << 10, time)),
            Self::CopyToBuffers => alone(copy_to_buffers),
            Self::CopyInMemory => alone(|_| copy_in_memory()),
            Self::UnixStream(len) => {
                unix_stream(len, [Side::Device, Side::Applications], cores, time)
            }
            Self::UnixStreamBack(len) => {
                unix_stream(len, [Side::Applications, Side::Device], cores, time)
            }
            Self::UnixConnect => unix_connect(cores, time),
            Self::UnixPingPong => unix_ping_pong(cores, time),
            Self::EventfdPingPong => eventfd_ping_pong(cores, time),
            Self::HostRelay => relay::to_host(cores, time),
            Self::SiblingRelay => relay::between_siblings(cores, time),
        }
    }
}

fn copy(len: usize, time: Duration) -> f64 {
    copy_between(&vec![1; len], &mut vec![2; len], time)
}

/// A large copy, in memory that is kept: what is freed by the gigabyte goes back to the
/// hypervisor, and would be missing in what is measured next (see [`crate::warm`]).
fn copy_in_memory() -> f64 {
    static BUFFERS: Mutex<[Vec<u8>; 2]> = Mutex::new([Vec::new(), Vec::new()]);
    let mut buffers = BUFFERS.lock().unwrap_or_else(PoisonError::into_inner);
    let [source, target] = &mut *buffers;
    source.resize(1 << 30, 1);
    target.resize(1 << 30, 2);
    copy_between(source, target, Duration::ZERO)
}

fn copy_between(source: &[u8], target: &mut [u8], time: Duration) -> f64 {
    let start = Instant::now();
    let mut copied = 0_usize;
    loop {
        target.copy_from_slice(black_box(source));
        black_box(&mut *target);
        copied += target.len();
        let elapsed = start.elapsed();
        if elapsed >= time {
            return copied as f64 / elapsed.as_secs_f64();
        }
    }
}

fn copy_to_buffers(time: Duration) -> f64 {
    let blocks = vec![1_u8; BUF_ALLOC as usize];
    let mut buffers = vec![2_u8; RX_BUFFER * usize::from(SIZE)];
    let start = Instant::now();
    let (mut next, mut copied) = (0, 0_usize);
    loop {
        for block in blocks.chunks(MAX_PAYLOAD) {
            for piece in black_box(block).chunks(RX_BUFFER - HEADER_LEN) {
                buffers[next..next + piece.len()].copy_from_slice(piece);
                next = (next + RX_BUFFER) % buffers.len();
            }
            black_box(&mut buffers);
            copied += block.len();
        }
        let elapsed = start.elapsed();
        if elapsed >= time {
            return copied as f64 / elapsed.as_secs_f64();
        }
    }
}

/// A stream from one side to the other.
fn unix_stream(len: usize, [from, to]: [Side; 2], cores: Placement, time: Duration) -> Result<f64> {
    let (mut writer, mut reader) = UnixStream::pair().context("socketpair")?;
    let (count, stopped) = (Count::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let placed = cores.enter(from);
            let bytes = vec![0; len];
            while writer.write_all(&bytes).is_ok() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
            }
            drop(writer);
            placed
        });
        scope.spawn(|| {
            let placed = cores.enter(to);
            let mut buffer = vec![0; 64 << 10];
            while let Ok(read @ 1..) = reader.read(&mut buffer) {
                count.add(read as u64);
            }
            placed
        });
        sleep(Duration::from_millis(50));
        let (start, before) = (Instant::now(), count.now());
        sleep(time);
        let rate = (count.now() - before) as f64 / start.elapsed().as_secs_f64();
        stopped.store(true, Ordering::Relaxed);
        Ok(rate)
    })
}

/// Connections from the device's side to the applications', one after the other.
fn unix_connect(cores: Placement, time: Duration) -> Result<f64> {
    let directory = TempDir::with_prefix("vsock-")?;
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).context("listen")?;
    thread::scope(|scope| {
        let server = scope.spawn(|| -> Result<()> {
            cores.enter(Side::Applications)?;
            // The last one says something.
            while listener.accept().context("accept")?.0.read(&mut [0])? == 0 {}
            Ok(())
        });
        let rate = cores.on(Side::Device, || {
            let (start, mut count) = (Instant::now(), 0_u32);
            while start.elapsed() < time {
                drop(UnixStream::connect(&path).context("connect")?);
                count += 1;
            }
            UnixStream::connect(&path)?.write_all(&[1])?;
            Ok(f64::from(count) / start.elapsed().as_secs_f64())
        })?;
        let ended = server.join();
        ended.map_err(|_| anyhow!("the server has panicked"))??;
        Ok(rate)
    })
}

/// The median time that `round_trip` takes on the applications' side.
pub(crate) fn round_trips(
    cores: Placement,
    time: Duration,
    mut round_trip: impl FnMut() -> Result<()> + Send,
) -> Result<f64> {
    cores.on(Side::Applications, || {
        let start = Instant::now();
        let mut times = Vec::new();
        while start.elapsed() < time {
            let sent = Instant::now();
            round_trip()?;
            times.push(sent.elapsed().as_secs_f64());
        }
        Ok(median(&times).unwrap_or(0.0))
    })
}

fn unix_ping_pong(cores: Placement, time: Duration) -> Result<f64> {
    let (mut ours, mut theirs) = UnixStream::pair().context("socketpair")?;
    thread::scope(|scope| {
        scope.spawn(move || {
            let placed = cores.enter(Side::Device);
            let mut byte = [0];
            while theirs.read_exact(&mut byte).is_ok() && theirs.write_all(&byte).is_ok() {}
            placed
        });
        let result = round_trips(cores, time, || {
            ours.write_all(&[1])?;
            Ok(ours.read_exact(&mut [0])?)
        });
        drop(ours);
        result
    })
}

fn eventfd_ping_pong(cores: Placement, time: Duration) -> Result<f64> {
    /// The value that ends the other thread.
    const END: u64 = 2;
    let (ping, pong) = (EventFd::new(0)?, EventFd::new(0)?);
    thread::scope(|scope| {
        scope.spawn(|| {
            let placed = cores.enter(Side::Device);
            while ping.read().is_ok_and(|value| value != END) && pong.write(1).is_ok() {}
            placed
        });
        let result = round_trips(cores, time, || {
            ping.write(1)?;
            pong.read()?;
            Ok(())
        });
        ping.write(END)?;
        result
    })
}
