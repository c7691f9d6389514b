//! A small VMM with a vsock device of its own, in one thread and plain memory: no
//! vhost-user, no sockets. It embeds the router, to which it adds a route of its own.
//!
//! ```text
//!   guest 3 ── Device ──┐          ┌── Device ── guest 4
//!              RxPort ──┤  Switch  ├── RxPort
//!                       └────┬─────┘
//!                  Inbox ── Echo, at port 7 of the host
//! ```
//!
//! [`device`] and [`rx_port`] are what a VMM implements for its guests, [`echo`] what it
//! may add; the guests themselves are those of `vsock-testkit`.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "it shows what it does")]

mod device;
mod echo;
mod rx_port;
mod vmm;

use std::cell::RefCell;
use std::error::Error;
use std::rc::Rc;

use vsock_packet::{Cid, GuestCid, VsockAddr};
use vsock_testkit::{Guest, StreamId};

use crate::vmm::{Bus, ECHO_PORT, Vmm, start_guest};

const SIBLING_PORT: u32 = 1000;

fn main() -> Result<(), Box<dyn Error>> {
    let vmm = Rc::new(RefCell::new(Vmm::new()));
    let [three, four, five] = [GuestCid::new(3)?, GuestCid::new(4)?, GuestCid::new(5)?];
    let mut one = start_guest(&vmm, three, &["friends"])?;
    let mut other = start_guest(&vmm, four, &["friends"])?;
    let mut stranger = start_guest(&vmm, five, &[])?;

    println!("A guest and the echo service:");
    let call = one.connect(ECHO_PORT)?;
    let words = pattern(200_000);
    let echoed = one.exchange(call, &words, words.len())?;
    println!(
        "    {} bytes sent, the same came back: {}",
        words.len(),
        echoed == words
    );
    one.close(call)?;

    println!("Two guests that share a group:");
    other.listen(SIBLING_PORT);
    let call = one.start_connect(VsockAddr::new(four, SIBLING_PORT))?;
    let answer = other.accept(SIBLING_PORT)?;
    let received = transfer(&mut one, call, &mut other, answer, &words)?;
    println!(
        "    {} bytes sent, the same arrived: {}",
        words.len(),
        received == words
    );

    println!("What the router refuses:");
    refused(&mut one, VsockAddr::new(Cid::HOST, 80))?;
    refused(&mut one, VsockAddr::new(Cid::new(99), 80))?;
    refused(&mut stranger, VsockAddr::new(four, SIBLING_PORT))?;

    println!("A guest is switched off:");
    vmm.borrow_mut().stop(four);
    one.expect_reset(call)?;
    println!("    its sibling's connection was reset");
    refused(&mut one, VsockAddr::new(four, SIBLING_PORT))?;
    Ok(())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// Has one guest write while the other reads.
fn transfer(
    from: &mut Guest<Bus>,
    out: StreamId,
    to: &mut Guest<Bus>,
    into: StreamId,
    bytes: &[u8],
) -> Result<Vec<u8>, vsock_testkit::Error> {
    let (mut written, mut read) = (0, Vec::new());
    while read.len() < bytes.len() {
        written += from.write_some(out, &bytes[written..])?;
        read.extend(to.read_some(into, usize::MAX)?);
    }
    Ok(read)
}

fn refused(guest: &mut Guest<Bus>, at: VsockAddr) -> Result<(), vsock_testkit::Error> {
    match guest.connect_to(at) {
        Err(vsock_testkit::Error::Refused { .. }) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(vsock_testkit::Error::Device(format!(
            "it let {at} be reached"
        ))),
    }
}
