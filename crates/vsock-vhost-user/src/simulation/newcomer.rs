//! When applications are heard that a guest has just connected to.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use vsock_testkit::StreamId;

use super::device;
use super::scene::{PEER, Scene};
use crate::poller::{EventFlags, Token};
use crate::trickle::PAUSE;

/// Two connections that are opened at once.
fn open_two(scene: &mut Scene) -> [(StreamId, UnixStream); 2] {
    let streams = [(); 2].map(|()| scene.guest.start_connect(PEER).unwrap());
    assert!(scene.device.turn());
    streams.map(|stream| (stream, scene.accept()))
}

/// A turn for something that the guest has sent.
fn send(scene: &mut Scene) {
    scene.guest.write_some(scene.stream, b"!").unwrap();
    assert!(scene.device.turn());
}

#[test]
fn who_speaks_first_is_heard_while_the_guest_never_pauses() {
    let mut scene = Scene::set();
    let mut newcomers = open_two(&mut scene);
    for (_, application) in &mut newcomers {
        application.write_all(b"hello").unwrap();
    }
    send(&mut scene);
    assert!(scene.device.turn(), "something was heard");
    scene.hear();
    for (stream, _) in newcomers {
        assert_eq!(scene.guest.stream(stream).unread(), 5);
    }
}

#[test]
fn who_is_gone_at_once_is_not_missed() {
    let mut scene = Scene::set();
    let newcomers = open_two(&mut scene);
    scene.hear();
    for (stream, _) in &newcomers {
        scene.guest.start_close(*stream).unwrap();
    }
    assert!(scene.device.turn());
    for (_, mut application) in newcomers {
        assert_eq!(application.read(&mut [0]).unwrap(), 0);
    }
    let connections = &mut scene.device.worker.connections;
    connections.watch_newcomers();
    assert_eq!(connections.len(), 1, "the first connection is left");
}

#[test]
fn who_cannot_be_watched_is_heard_all_the_same() {
    let mut scene = Scene::set();
    let mut newcomers = open_two(&mut scene);
    let worker = &mut scene.device.worker;
    let registry = worker.poller.registry();
    let mut added = 0;
    worker.connections.for_each_socket(|socket| {
        // What is there already cannot be added, as the first connection's is.
        let nothing = EventFlags::empty();
        added += usize::from(registry.add(socket, Token::Wake, nothing).is_ok());
    });
    assert_eq!(added, 2, "newcomers are not watched");
    for _ in 0..3 {
        scene.rest();
        for (_, application) in &mut newcomers {
            application.write_all(b"!").unwrap();
        }
        device::pass(PAUSE);
    }
    scene.rest();
    let worker = &mut scene.device.worker;
    worker.connections.for_each_socket(|socket| {
        let _ = registry.remove(socket);
    });
    device::pass(PAUSE);
    scene.rest();
    for (_, application) in &mut newcomers {
        application.write_all(b"!").unwrap();
    }
    scene.rest();
    for (stream, _) in newcomers {
        assert_eq!(scene.guest.stream(stream).unread(), 4);
    }
}

#[test]
fn a_full_socket_is_heard_of_before_and_after() {
    const BYTES: usize = 100_000;
    let mut scene = Scene::set();
    scene.device.socket_size = Some(5000);
    let mut newcomers = open_two(&mut scene);
    scene.hear();
    for (stream, _) in &newcomers {
        let sent = scene.guest.write_some(*stream, &vec![7; BYTES]);
        assert_eq!(sent.unwrap(), BYTES);
    }
    assert!(scene.device.turn());
    for (stream, application) in &mut newcomers {
        let mut left = BYTES;
        application.set_nonblocking(true).unwrap();
        while left > 0 {
            left -= application.read(&mut vec![0; left]).unwrap();
            scene.rest();
        }
        application.write_all(b"done").unwrap();
        scene.rest();
        assert_eq!(scene.guest.stream(*stream).unread(), 4);
    }
}
