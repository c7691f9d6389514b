//! Host to guest: `CONNECT <port>\n`, answered with `OK <host port>\n` or the end of the stream.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::{Duration, Instant};

use common::{AT_ONCE, CID, Device, Waking, assert_at_once, pattern};
use vsock_packet::{Cid, Op};
use vsock_testkit::host::{Client, HostStream, port_path};
use vsock_testkit::{Behaviour, Error, Guest, Setup, State, StreamId, VhostUser, feature, queue};

/// How long the guest has to answer a REQUEST.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a client has to say which port it wants.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than any timeout, on a machine that stops this process for a while, too.
const PATIENCE: Duration = Duration::from_secs(60);

/// Dials port 1234, which the guest listens to.
fn dial(device: &Device, guest: &mut Guest) -> Result<(StreamId, HostStream, u32), Error> {
    let client = Client::dial(&device.uds(), 1234)?;
    let stream = guest.accept(1234)?;
    let (end, port) = client.accepted()?;
    Ok((stream, end, port))
}

/// A guest that listens to port 1234.
fn listening_guest(device: &Device) -> Result<Guest, Error> {
    let mut guest = device.guest()?;
    guest.listen(1234);
    Ok(guest)
}

#[test]
fn connects_and_tells_the_host_port_the_guest_sees() -> Result<(), Error> {
    let device = Device::start();
    let mut guest = listening_guest(&device)?;
    let (stream, mut end, port) = dial(&device, &mut guest)?;
    let peer = guest.stream(stream).peer();
    assert_eq!((peer.cid, peer.port.value()), (Cid::HOST, port));
    assert!((1024..=65535).contains(&port), "host port {port}");
    end.write_all(b"to the guest")?;
    assert_eq!(guest.read_exact(stream, 12)?, b"to the guest");
    guest.write_all(stream, b"to the host")?;
    assert_eq!(end.read_exact(11)?, b"to the host");
    guest.close(stream)?;
    assert_eq!(end.read_to_end()?, b"");
    Ok(())
}

#[test]
fn the_keyword_may_be_in_either_case() -> Result<(), Error> {
    let device = Device::start();
    let mut guest = listening_guest(&device)?;
    for line in ["CONNECT 1234\n", "connect 1234\n", "Connect 1234\n"] {
        let mut client = Client::connect(&device.uds())?;
        client.say(line.as_bytes())?;
        let stream = guest.accept(1234)?;
        client.accepted()?;
        guest.start_close(stream)?;
    }
    Ok(())
}

#[test]
fn the_line_may_come_in_pieces() -> Result<(), Error> {
    let device = Device::start();
    let mut guest = listening_guest(&device)?;
    let mut client = Client::connect(&device.uds())?;
    for byte in "CONNECT 1234\n".bytes() {
        client.say(&[byte])?;
        guest.pump(Duration::from_millis(2))?;
    }
    guest.accept(1234)?;
    client.accepted().map(drop)
}

#[test]
fn payload_behind_the_line_is_not_lost() -> Result<(), Error> {
    for len in [1, 10, 5_000, 150_000] {
        let device = Device::start();
        let mut guest = listening_guest(&device)?;
        let mut client = Client::connect(&device.uds())?;
        client.say(&[b"CONNECT 1234\n", &pattern(len)[..]].concat())?;
        let stream = guest.accept(1234)?;
        assert!(
            guest.read_exact(stream, len)? == pattern(len),
            "{len} bytes"
        );
        client.accepted()?;
    }
    Ok(())
}

#[test]
fn ok_comes_before_any_data_of_the_guest() -> Result<(), Error> {
    let device = Device::start();
    let mut guest = listening_guest(&device)?;
    let client = Client::dial(&device.uds(), 1234)?;
    let stream = guest.accept(1234)?;
    guest.write_all(stream, &pattern(10_000))?;
    let (mut end, _) = client.accepted()?;
    assert!(end.read_exact(10_000)? == pattern(10_000));
    Ok(())
}

#[test]
fn a_line_that_is_none_ends_the_stream() -> Result<(), Error> {
    let device = Device::start();
    let _guest = listening_guest(&device)?;
    for line in [
        "\n",
        "CONNECT\n",
        "CONNECT \n",
        "CONNECT x\n",
        "CONNECT -1\n",
        "CONNECT 1234 5\n",
        "CONNECT 4294967296\n",
        "HELLO 1234\n",
        "CONNECT 00000000000000000000001234\n",
        "CONNECT CONNECT CONNECT CONNECT CONNECT",
    ] {
        let mut client = Client::connect(&device.uds())?;
        client.say(line.as_bytes())?;
        client
            .expect_refusal(AT_ONCE)
            .map_err(|error| panic!("{line:?}: {error}"))
            .unwrap();
    }
    Ok(())
}

#[test]
fn what_the_guest_refuses_ends_the_stream_at_once() -> Result<(), Error> {
    let device = Device::start();
    let mut guest = device.guest()?;
    let start = Instant::now();
    let client = Client::dial(&device.uds(), 1234)?;
    guest.pump(Duration::from_millis(20))?;
    client.expect_refusal(AT_ONCE)?;
    assert_at_once(start, "the refusal");
    Ok(())
}

#[test]
fn without_a_vm_the_stream_ends_at_once() -> Result<(), Error> {
    let device = Device::start();
    for _ in 0..1500 {
        Client::dial(&device.uds(), 1234)?.expect_refusal(AT_ONCE)?;
    }
    let mut guest = listening_guest(&device)?;
    dial(&device, &mut guest)?;
    drop(guest);
    Client::dial(&device.uds(), 1234)?.expect_refusal(AT_ONCE)
}

#[test]
fn before_the_rings_are_started_the_stream_ends_at_once() -> Result<(), Error> {
    let device = Device::start();
    let memory = vsock_testkit::Memory::one_region()?;
    let _vm = VhostUser::connect(
        &device.socket(CID),
        2,
        feature::LINUX,
        VhostUser::QEMU,
        &memory,
    )?;
    Client::dial(&device.uds(), 1234)?.expect_refusal(AT_ONCE)
}

#[test]
fn the_host_port_is_free_again_when_the_connection_ends() -> Result<(), Error> {
    let device = Device::start();
    let mut guest = device.guest()?;
    let count = 65535 - 1024 + 1;
    // Each REQUEST is refused by the guest, and uses up one port for that time.
    for dialled in 0..=count {
        let client = Client::dial(&device.uds(), 1234)?;
        let refused = guest.wait_until("a REQUEST", |guest| guest.refused() > dialled);
        refused
            .map_err(|error| panic!("dial {dialled}: {error}"))
            .unwrap();
        client.expect_refusal(Duration::from_secs(1))?;
    }
    Ok(())
}

#[test]
fn ports_of_open_connections_differ() -> Result<(), Error> {
    let device = Device::start();
    let mut guest = listening_guest(&device)?;
    let mut open = Vec::new();
    for _ in 0..100 {
        open.push(dial(&device, &mut guest)?);
    }
    let mut ports: Vec<u32> = open.iter().map(|&(.., port)| port).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 100);
    Ok(())
}

#[test]
fn a_client_that_hangs_up_harms_nobody() -> Result<(), Error> {
    let device = Device::start();
    let mut guest = listening_guest(&device)?;
    guest.listen(1235);
    for line in ["", "CONN", "CONNECT 1235\n"] {
        for _ in 0..20 {
            let mut client = Client::connect(&device.uds())?;
            client.say(line.as_bytes())?;
        }
    }
    guest.pump(Duration::from_millis(50))?;
    dial(&device, &mut guest).map(drop)
}

#[test]
fn a_client_that_hangs_up_after_ok_ends_the_guests_stream() -> Result<(), Error> {
    let device = Device::start();
    let mut guest = listening_guest(&device)?;
    let (stream, end, _) = dial(&device, &mut guest)?;
    let start = Instant::now();
    drop(end);
    assert_eq!(guest.read_to_end(stream)?, b"");
    assert_at_once(start, "the stream's end");
    guest.close(stream)
}

#[test]
fn a_guest_that_does_not_answer_costs_the_client_two_seconds() -> Result<(), Error> {
    let device = Device::start();
    let behaviour = Behaviour {
        answers_requests: false,
        ..Behaviour::linux()
    };
    let mut guest = device.guest_with(Setup {
        behaviour,
        patience: PATIENCE,
        ..Setup::default()
    })?;
    let waking = Waking::start();
    let client = Client::dial(&device.uds(), 1234)?;
    let request = guest.expect_packet(Op::Request)?;
    guest.leave_to_hand(1234);
    let rst = guest.expect_packet(Op::Rst)?;
    assert_eq!(rst.header.src_port(), request.header.src_port());
    client.expect_refusal(PATIENCE)?;
    waking.assert_timed_out(REQUEST_TIMEOUT, "the request");
    Ok(())
}

#[test]
fn a_response_after_the_request_timed_out_is_a_strangers() -> Result<(), Error> {
    let device = Device::start();
    let behaviour = Behaviour {
        answers_requests: false,
        ..Behaviour::linux()
    };
    let mut guest = device.guest_with(Setup {
        behaviour,
        ..Setup::default()
    })?;
    let _client = Client::dial(&device.uds(), 1234)?;
    let request = guest.expect_packet(Op::Request)?.parse().unwrap();
    guest.leave_to_hand(1234);
    guest.expect_packet(Op::Rst)?;
    let response = vsock_packet::Header::new(Op::Response, request.dst, request.src).to_raw();
    guest.send_packet(&response, &[], &vsock_testkit::Layout::linux())?;
    guest.expect_packet(Op::Rst).map(drop)
}

/// As many clients as may be silent, and one more, which is heard.
struct Crowd {
    /// From before the first of them.
    waking: Waking,
    silent: std::vec::IntoIter<Client>,
    heard: (StreamId, HostStream, u32),
}

impl Crowd {
    fn gather(device: &Device, guest: &mut Guest) -> Result<Self, Error> {
        let waking = Waking::start();
        let silent: Result<Vec<_>, _> = (0..128).map(|_| Client::connect(&device.uds())).collect();
        Ok(Self {
            waking,
            silent: silent?.into_iter(),
            heard: dial(device, guest)?,
        })
    }
}

/// A crowd whose oldest silent client went because there was one more, not because its time
/// was up: a machine that stops this process for a while may let that pass.
fn crowd_without_the_oldest(device: &Device, guest: &mut Guest) -> Result<Crowd, Error> {
    const TRIES: usize = 5;
    for _ in 0..TRIES {
        let mut crowd = Crowd::gather(device, guest)?;
        crowd.silent.next().unwrap().expect_refusal(PATIENCE)?;
        if crowd.waking.elapsed() < HANDSHAKE_TIMEOUT / 2 {
            return Ok(crowd);
        }
    }
    panic!("the oldest of too many silent clients went late, {TRIES} times");
}

#[test]
fn silent_clients_are_limited_in_number_and_time() -> Result<(), Error> {
    let device = Device::start();
    let mut guest = device.guest_with(Setup {
        patience: PATIENCE,
        ..Setup::default()
    })?;
    guest.listen(1234);
    let crowd = crowd_without_the_oldest(&device, &mut guest)?;
    for client in crowd.silent {
        client.expect_refusal(PATIENCE)?;
        crowd
            .waking
            .assert_timed_out(HANDSHAKE_TIMEOUT, "a handshake");
    }
    // Who is connected is not in a handshake any more.
    let (stream, mut end, _) = crowd.heard;
    guest.write_all(stream, b"hello")?;
    assert_eq!(end.read_exact(5)?, b"hello");
    assert_eq!(guest.stream(stream).state(), State::Established);
    Ok(())
}

/// It reads one part of its window while the other is put.
#[test]
fn a_guest_is_told_of_much_before_all_is_there() -> Result<(), Error> {
    let device = Device::start();
    let host = UnixListener::bind(port_path(&device.uds(), 700)).unwrap();
    let mut guest = device.guest_with(Setup {
        // It is told whenever there is anything.
        features: feature::LINUX & !feature::EVENT_IDX,
        ..Setup::default()
    })?;
    let stream = guest.connect(700)?;
    let (mut end, _) = host.accept().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&end, 512 << 10).unwrap();
    end.set_nonblocking(true).unwrap();

    let bases = guest.stop()?;
    let payload = pattern(250_000);
    let mut waiting = 0;
    while waiting < payload.len() {
        waiting += end.write(&payload[waiting..]).unwrap();
    }
    guest.resume(&bases)?;
    let (start, mut calls) = (Instant::now(), 0);
    // Its driver does not look meanwhile.
    while calls < 2 {
        calls += guest.transport().calls(queue::RX);
        let waited = start.elapsed();
        assert!(waited < guest.patience, "{calls} calls within {waited:?}");
        thread::yield_now();
    }
    assert_eq!(guest.read_exact(stream, payload.len())?, payload);
    Ok(())
}
