//! Guest memory that is taken back, or told to be less, while it is in use.

use std::thread::spawn;
use std::time::Duration;

use vsock_testkit::host::HostListener;
use vsock_testkit::{Guest, Memory, ProtocolFeatures, Setup, Transport, VhostUser, queue};

use crate::hostile::raw::{RawFrontend, longs, request};
use crate::hostile::{ECHO, HOSTILE, House, done};

const SIZE: usize = 64 << 20;

/// The hostile guest, in memory that can be taken back.
fn unsealed(house: &House) -> (Guest, Memory) {
    let memory = Memory::unsealed(&[(0, SIZE)]).unwrap();
    let setup = Setup {
        memory: Some(memory.clone()),
        ..Setup::default()
    };
    (house.guest_with(setup), memory)
}

/// Takes the memory back; the session ends for it, with a word in the log.
///
/// All that was under way may have been dealt with by then, so the guest kicks once more,
/// as one does that goes on.
#[track_caller]
fn loses_its_memory(house: &House, mut guest: Guest, memory: &Memory) {
    let frontend = RawFrontend::of(&mut guest);
    done(memory.take_back());
    for queue in [queue::RX, queue::TX] {
        done(guest.transport().kick(queue));
    }
    frontend.expect_end();
    drop(guest);
    house.has_ended_a_session();
}

/// The host writes: the kernel copies to where nothing is.
#[test]
fn memory_taken_back_under_a_host_that_writes() {
    let house = House::new();
    let (mut guest, memory) = unsealed(&house);
    let listener = done(HostListener::bind(&house.uds(HOSTILE), 701));
    done(guest.connect(701));
    let mut end = done(listener.accept());
    let host = spawn(move || while end.write_all(&[1; 10_000]).is_ok() {});
    done(guest.pump(Duration::from_millis(10)));
    loses_its_memory(&house, guest, &memory);
    host.join().unwrap();
    drop(listener);
    house.has_counted(&["faults"]);
    house.ends_unharmed();
}

/// A sibling sends: its worker copies to where nothing is, and goes on.
#[test]
fn memory_taken_back_under_a_sibling_that_sends() {
    let house = House::new();
    let (mut guest, memory) = unsealed(&house);
    let mut sibling = house.sibling();
    guest.listen(80);
    let stream = done(sibling.start_connect(guest.at(80)));
    done(guest.accept(80));
    done(sibling.write_some(stream, &[1; 5000]).map(drop));
    let frontend = RawFrontend::of(&mut guest);
    done(memory.take_back());
    done(sibling.write_some(stream, &[1; 50_000]).map(drop));
    frontend.expect_end();
    drop(guest);
    done(sibling.expect_reset(stream));
    house.works(&mut sibling);
    drop(sibling);
    house.has_counted(&["faults"]);
    house.ends_unharmed();
}

/// The guest sends, to the host and to a sibling: its worker reads where nothing is.
#[test]
fn memory_taken_back_under_a_guest_that_sends() {
    let house = House::new();
    for to_sibling in [false, true] {
        let (mut guest, memory) = unsealed(&house);
        let mut sibling = house.sibling();
        sibling.listen(80);
        let stream = if to_sibling {
            let stream = done(guest.start_connect(sibling.at(80)));
            done(sibling.accept(80));
            stream
        } else {
            done(guest.connect(ECHO))
        };
        done(guest.pump(Duration::from_millis(5)));
        done(guest.write_some(stream, &[1; 200_000]).map(drop));
        loses_its_memory(&house, guest, &memory);
        house.works(&mut sibling);
    }
    house.has_counted(&["faults"]);
    house.ends_unharmed();
}

/// Nothing is going on: it is noticed when the next packet comes.
#[test]
fn memory_taken_back_from_a_guest_at_rest() {
    let house = House::new();
    let (mut guest, memory) = unsealed(&house);
    let frontend = RawFrontend::of(&mut guest);
    done(memory.take_back());
    let client = done(vsock_testkit::host::Client::dial(&house.uds(HOSTILE), 80));
    frontend.expect_end();
    done(client.expect_refusal(Duration::from_secs(5)));
    drop(guest);
    house.has_counted(&["faults"]);
    house.ends_unharmed();
}

/// Rings are started in memory that is no more.
#[test]
fn memory_taken_back_before_the_rings_are_started() {
    let house = House::new();
    let memory = Memory::unsealed(&[(0, SIZE)]).unwrap();
    let place = memory.alloc(1 << 16);
    let mut frontend = VhostUser::connect(
        &house.socket(HOSTILE),
        2,
        u64::MAX,
        VhostUser::QEMU,
        &memory,
    )
    .unwrap();
    done(frontend.share_memory());
    done(memory.take_back());
    let areas = [0, 0x2000, 0x4000].map(|at| vm_memory::GuestAddress(place.0 + at));
    let _ = frontend.start_ring(0, 128, areas, 0);
    drop(frontend);
    house.ends_unharmed();
}

/// A memory table that shrinks under load: what lies outside is outside.
#[test]
fn a_table_that_shrinks_and_grows_under_load() {
    let house = House::new();
    let memory = Memory::touching_regions(8).unwrap();
    let setup = Setup {
        memory: Some(memory.clone()),
        protocol: VhostUser::QEMU - ProtocolFeatures::CONFIGURE_MEM_SLOTS,
        ..Setup::default()
    };
    let mut guest = house.guest_with(setup);
    let mut sibling = house.sibling();
    guest.listen(80);
    let from_sibling = done(sibling.start_connect(guest.at(80)));
    done(guest.accept(80));
    let stream = done(guest.connect(ECHO));
    for round in 0..30 {
        done(guest.write_some(stream, &[1; 100_000]).map(drop));
        done(sibling.write_some(from_sibling, &[1; 10_000]).map(drop));
        shrink(&mut guest, &memory, round % 2);
        done(sibling.step().map(drop));
        done(guest.transport().share_memory());
    }
    // Whatever it lost by that, it can start anew.
    done(guest.reset());
    house.works(&mut guest);
    house.works(&mut sibling);
    drop((guest, sibling));
    house.ends_unharmed();
}

/// Tells of one small region instead of all: one with the rings in it, or another.
fn shrink(guest: &mut Guest, memory: &Memory, which: usize) {
    use std::os::fd::AsFd;
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
    let region = memory.map().iter().nth(which).unwrap();
    let file = region.file_offset().unwrap().file();
    let start = region.start_addr();
    let size = if which == 0 { 1 << 20 } else { region.len() };
    let user = memory.host_address(start) as u64;
    let body = [&1u64.to_le_bytes()[..], &longs(&[start.0, size, user, 0])].concat();
    assert!(RawFrontend::of(guest).ask(request::SET_MEM_TABLE, &body, &[file.as_fd()]));
}
