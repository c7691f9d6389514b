//! When what an application writes little by little reaches the guest, by the clock of the
//! simulation.

use std::io::{ErrorKind, Read};
use std::net::Shutdown;

use rustix::net::sockopt::set_socket_send_buffer_size;

use super::device;
use super::scene::Scene;
use crate::poller::{EventFlags, Token};
use crate::trickle::PAUSE;

/// Writes that are enough to be taken for a trickle.
const ENOUGH: usize = 20;

impl Scene {
    /// The application writes until it is taken for one that trickles.
    fn begin(&mut self) {
        let written = (1..=ENOUGH).find(|_| self.write() == 0);
        assert!(written.is_some(), "nothing was gathered");
        device::pass(PAUSE);
        assert_eq!(self.take(), 1, "what was gathered comes after a pause");
    }
}

#[test]
fn a_trickle_is_gathered_for_a_pause_at_a_time() {
    let mut scene = Scene::set();
    scene.begin();
    for _ in 0..10 {
        for _ in 0..5 {
            device::pass(PAUSE / 10);
            assert_eq!(scene.write(), 0);
        }
        assert!(scene.device.deadline() <= Some(device::now() + PAUSE / 2));
        device::pass(PAUSE / 2);
        assert_eq!(scene.take(), 5);
    }
}

#[test]
fn what_is_written_now_and_then_comes_at_once() {
    let mut scene = Scene::set();
    scene.begin();
    for _ in 0..ENOUGH {
        device::pass(2 * PAUSE);
        assert_eq!(scene.take(), 0);
        assert_eq!(scene.write(), 1);
    }
}

#[test]
fn an_answer_comes_at_once() {
    let mut scene = Scene::set();
    for _ in 0..ENOUGH {
        scene.guest.write_some(scene.stream, b"?").unwrap();
        assert_eq!(scene.take(), 0);
        assert_eq!(scene.write(), 1);
    }
}

#[test]
fn the_end_of_a_trickle_comes_a_pause_after_all_before_it() {
    let mut scene = Scene::set();
    scene.begin();
    assert_eq!(scene.write(), 0);
    scene.application.shutdown(Shutdown::Write).unwrap();
    device::pass(PAUSE);
    assert_eq!(scene.take(), 1);
    device::pass(PAUSE);
    scene.take();
    assert!(scene.guest.stream(scene.stream).at_end());
}

#[test]
fn nothing_is_looked_after_when_a_trickle_has_dried_up() {
    let mut scene = Scene::set();
    scene.begin();
    device::pass(PAUSE);
    scene.take();
    let next = scene.device.deadline();
    assert!(
        next.is_none_or(|at| at > device::now() + 10 * PAUSE),
        "{next:?}"
    );
}

#[test]
fn what_could_not_be_watched_is_looked_after_while_the_guest_is_paused() {
    const BYTES: usize = 100_000;
    let mut scene = Scene::set();
    // A socket's size is chosen with the first of many bytes.
    scene.say(BYTES);
    scene.application.read_exact(&mut [0; BYTES]).unwrap();
    scene.begin();
    let worker = &mut scene.device.worker;
    let registry = worker.poller.registry();
    worker.connections.for_each_socket(|socket| {
        set_socket_send_buffer_size(socket, 5000).unwrap();
        // What is there already cannot be added.
        let nothing = EventFlags::empty();
        registry.add(socket, Token::Wake, nothing).unwrap();
    });
    scene.say(BYTES);
    let connections = &mut scene.device.worker.connections;
    connections.for_each_socket(|socket| registry.remove(socket).unwrap());
    scene.device.stop();
    device::pass(PAUSE);
    scene.application.set_nonblocking(true).unwrap();
    let mut heard = Vec::new();
    while let Err(error) = scene.application.read_to_end(&mut heard)
        && error.kind() == ErrorKind::WouldBlock
        && scene.device.run()
    {}
    assert_eq!(heard.len(), BYTES);
}
