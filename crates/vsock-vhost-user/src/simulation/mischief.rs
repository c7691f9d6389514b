//! What a hostile guest does, and the applications that it finds at its host.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use vsock_packet::{Cid, Header, Op, RawHeader, SocketType, VsockAddr};
use vsock_testkit::{Guest, Layout, Random, RawDescriptor, queue};

use super::device::Kicks;

/// Ports at which its host listens.
const PORTS: u32 = 3;

pub(super) struct Mischief {
    listeners: Vec<UnixListener>,
    applications: Vec<UnixStream>,
}

impl Mischief {
    pub(super) fn new(uds_path: &Path) -> Self {
        let listen = |port| {
            let listener = UnixListener::bind(format!("{}_{port}", uds_path.display())).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        };
        Self {
            listeners: (0..PORTS).map(listen).collect(),
            applications: Vec::new(),
        }
    }

    /// Does something that it should not.
    pub(super) fn act(&mut self, guest: &mut Guest<Kicks>, all: &[Cid], random: &mut Random) {
        match random.below(10) {
            0 => self.host_acts(random),
            1 => {
                let descriptor = |random: &mut Random| RawDescriptor {
                    address: random.size(usize::MAX >> 20) as u64,
                    len: random.size(u32::MAX as usize) as u32,
                    flags: random.below(8) as u16,
                    next: random.below(20) as u16,
                };
                let table: Vec<_> = (0..4).map(|_| descriptor(random)).collect();
                let queue = random.below(2);
                let head = random.below(20) as u16;
                guest.rings_mut().ring_mut(queue).add_raw(&table, head);
            }
            _ => {
                for _ in 0..random.size(40) {
                    let header = header(guest.cid(), all, random);
                    let len = random.size(5000);
                    let payload = vec![0; len];
                    guest.rings_mut().send(&header, &payload, &Layout::linux());
                }
            }
        }
        // Whatever it makes of its rings; it kicks in any case.
        let _ = guest.step();
        let _ = guest.rings_mut().ring_mut(queue::TX).needs_kick();
    }

    fn host_acts(&mut self, random: &mut Random) {
        for listener in &self.listeners {
            if let Ok((application, _)) = listener.accept() {
                application.set_nonblocking(true).unwrap();
                self.applications.push(application);
            }
        }
        self.applications.retain_mut(|application| {
            let mut scrap = [0; 5000];
            let _ = application.read(&mut scrap[..1 + random.below(4999)]);
            let _ = application.write(&scrap[..random.below(5000)]);
            random.chance(80)
        });
    }
}

fn header(own: Cid, all: &[Cid], random: &mut Random) -> RawHeader {
    let from = match random.chance(90) {
        true => own,
        false => random.pick(all),
    };
    let to = match random.chance(50) {
        true => Cid::HOST,
        false => random.pick(all),
    };
    let port = match random.chance(70) {
        true => random.below(PORTS as usize + 1) as u32,
        // Where others talk.
        false => 2000 + random.below(40) as u32,
    };
    let src = VsockAddr::new(from, random.below(4) as u32);
    let header = Header {
        socket_type: random.pick(&[
            SocketType::Stream,
            SocketType::Stream,
            SocketType::Seqpacket,
        ]),
        len: random.size(6000) as u32,
        flags: random.below(4) as u32,
        buf_alloc: random.pick(&[0, 1, 4096, 1 << 18, u32::MAX]),
        fwd_cnt: random.pick(&[0, 0, 1, 100, u32::MAX, 1 << 31]),
        ..Header::new(random.pick(&Op::ALL), src, VsockAddr::new(to, port))
    };
    let mut bytes = *header.to_raw().as_bytes();
    if random.chance(10) {
        let at = random.below(bytes.len());
        bytes[at] = random.below(256) as u8;
    }
    RawHeader::from_bytes(bytes)
}
