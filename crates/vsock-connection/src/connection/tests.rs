use vsock_packet::Cid;

use super::*;

const BUF: u32 = 4096;

fn guest() -> VsockAddr {
    VsockAddr::new(Cid::new(3), 1234)
}

fn host() -> VsockAddr {
    VsockAddr::new(Cid::HOST, 80)
}

fn from_guest(op: Op) -> Header {
    Header {
        buf_alloc: BUF,
        ..Header::new(op, guest(), host())
    }
}

fn established(now: Instant) -> Connection {
    let mut connection = Connection::accepted(&from_guest(Op::Request), BUF, Timeouts::default());
    assert_eq!(ops(&mut connection, now), [Op::Response]);
    connection
}

fn requested(now: Instant) -> Connection {
    let mut connection = Connection::requested(host(), guest(), BUF, Timeouts::default(), now);
    assert_eq!(ops(&mut connection, now), [Op::Request]);
    connection
}

fn ops(connection: &mut Connection, now: Instant) -> Vec<Op> {
    std::iter::from_fn(|| connection.poll_control(now))
        .map(|header| header.op)
        .collect()
}

fn shutdown(flags: ShutdownFlags) -> Header {
    Header {
        flags: flags.bits(),
        ..from_guest(Op::Shutdown)
    }
}

#[test]
fn answers_a_request_before_anything_else() {
    let now = Instant::now();
    let mut connection = Connection::accepted(&from_guest(Op::Request), BUF, Timeouts::default());
    connection.receive(&from_guest(Op::CreditRequest), now);
    assert_eq!(ops(&mut connection, now), [Op::Response]);
}

#[test]
fn a_host_request_becomes_a_connection_by_its_response() {
    let now = Instant::now();
    let mut connection = requested(now);
    assert_eq!(connection.sendable(), (0, 0));
    assert_eq!(
        connection.receive(&from_guest(Op::Response), now),
        Received::Accepted
    );
    assert_eq!(connection.sendable(), (BUF as usize, 4));
    assert_eq!(connection.deadline(), None);
}

#[test]
fn a_host_request_is_refused_by_an_rst_that_gets_no_answer() {
    let now = Instant::now();
    let mut connection = requested(now);
    assert_eq!(
        connection.receive(&from_guest(Op::Rst), now),
        Received::Closed(Cause::GuestReset)
    );
    assert_eq!(ops(&mut connection, now), []);
}

#[test]
fn a_host_request_without_answer_times_out_with_an_rst() {
    let now = Instant::now();
    let mut connection = requested(now);
    let deadline = connection.deadline().unwrap();
    assert_eq!(deadline, now + Duration::from_secs(2));
    connection.handle_timeout(deadline - Duration::from_millis(1));
    assert_eq!(connection.closed(), None);
    connection.handle_timeout(deadline);
    assert_eq!(connection.closed(), Some(Cause::RequestTimeout));
    assert_eq!(ops(&mut connection, now), [Op::Rst]);
}

#[test]
fn a_response_without_a_request_is_reset() {
    let now = Instant::now();
    let mut connection = established(now);
    let cause = Cause::UnexpectedPacket(Op::Response);
    assert_eq!(
        connection.receive(&from_guest(Op::Response), now),
        Received::Closed(cause)
    );
    assert_eq!(ops(&mut connection, now), [Op::Rst]);
}

#[test]
fn payload_before_the_response_is_reset() {
    let now = Instant::now();
    let mut connection = requested(now);
    connection.receive(
        &Header {
            len: 1,
            ..from_guest(Op::Rw)
        },
        now,
    );
    assert_eq!(ops(&mut connection, now), [Op::Rst]);
}

#[test]
fn a_credit_violation_is_reset() {
    let now = Instant::now();
    let mut connection = established(now);
    let packet = Header {
        len: BUF,
        ..from_guest(Op::Rw)
    };
    assert_eq!(connection.receive(&packet, now), Received::Payload);
    assert!(matches!(
        connection.receive(&packet, now),
        Received::Closed(Cause::CreditViolation(_))
    ));
    assert_eq!(ops(&mut connection, now), [Op::Rst]);
}

#[test]
fn halves_end_one_by_one_and_for_good() {
    let now = Instant::now();
    let mut connection = established(now);
    connection.receive(&shutdown(ShutdownFlags::SEND), now);
    connection.receive(&shutdown(ShutdownFlags::empty()), now);
    assert_eq!(connection.guest_ended(), ShutdownFlags::SEND);
    assert!(connection.sendable().0 > 0, "the guest still receives");
    connection.receive(&shutdown(ShutdownFlags::RECEIVE), now);
    assert!(connection.guest_ended().is_all());
    assert_eq!(connection.sendable(), (0, 0));
}

#[test]
fn payload_after_the_guest_ended_its_half_is_reset() {
    let now = Instant::now();
    let mut connection = established(now);
    connection.receive(&shutdown(ShutdownFlags::SEND), now);
    connection.receive(
        &Header {
            len: 1,
            ..from_guest(Op::Rw)
        },
        now,
    );
    assert_eq!(connection.closed(), Some(Cause::UnexpectedPacket(Op::Rw)));
}

#[test]
fn a_clean_close_of_the_guest_is_answered_by_an_rst() {
    let now = Instant::now();
    let mut connection = established(now);
    connection.receive(&shutdown(ShutdownFlags::all()), now);
    assert_eq!(
        ops(&mut connection, now),
        [],
        "what it sent is still on its way"
    );
    connection.finish();
    assert_eq!(ops(&mut connection, now), [Op::Rst]);
}

#[test]
fn the_host_tells_each_half_it_ends_and_then_waits_for_the_rst() {
    let now = Instant::now();
    let mut connection = established(now);
    connection.end_host(ShutdownFlags::SEND, now);
    let header = connection.poll_control(now).unwrap();
    assert_eq!(
        (header.op, header.shutdown_flags()),
        (Op::Shutdown, ShutdownFlags::SEND)
    );
    assert_eq!(
        connection.deadline(),
        None,
        "half a connection may stay for ever"
    );

    connection.end_host(ShutdownFlags::SEND, now);
    assert_eq!(ops(&mut connection, now), [], "said once");

    connection.end_host(ShutdownFlags::RECEIVE, now);
    let header = connection.poll_control(now).unwrap();
    assert_eq!(header.shutdown_flags(), ShutdownFlags::all());

    let deadline = connection.deadline().unwrap();
    connection.handle_timeout(deadline);
    assert_eq!(connection.closed(), Some(Cause::ShutdownTimeout));
    assert_eq!(ops(&mut connection, now), [Op::Rst]);
}

#[test]
fn an_rst_is_never_answered_even_when_one_was_about_to_go() {
    let now = Instant::now();
    let mut connection = established(now);
    connection.reset(Cause::HostError);
    connection.receive(&from_guest(Op::Rst), now);
    assert_eq!(ops(&mut connection, now), []);
}

#[test]
fn asks_for_credit_until_it_can_send() {
    let now = Instant::now();
    let mut connection = established(now);
    assert_eq!(connection.data_header(BUF as usize).len, BUF);
    connection.blocked();
    connection.blocked();
    assert_eq!(ops(&mut connection, now), [Op::CreditRequest]);
    connection.receive(&from_guest(Op::CreditUpdate), now);
    connection.blocked();
    assert_eq!(
        ops(&mut connection, now),
        [],
        "an update without room asks no more"
    );
    let deadline = connection.deadline().unwrap();
    connection.handle_timeout(deadline);
    assert_eq!(ops(&mut connection, deadline), [Op::CreditRequest]);
    connection.receive(
        &Header {
            fwd_cnt: BUF,
            ..from_guest(Op::CreditUpdate)
        },
        now,
    );
    connection.data_header(1);
    assert_eq!(connection.deadline(), None);
}

#[test]
fn asks_for_news_before_the_guest_holds_too_many_packets() {
    let now = Instant::now();
    let mut connection = established(now);
    connection.data_header(1);
    assert_eq!(ops(&mut connection, now), []);
    connection.data_header(1);
    assert_eq!(ops(&mut connection, now), [Op::CreditRequest]);
    connection.data_header(1);
    assert_eq!(ops(&mut connection, now), [], "asked already");
    connection.receive(
        &Header {
            fwd_cnt: 3,
            ..from_guest(Op::CreditUpdate)
        },
        now,
    );
    assert_eq!(connection.sendable(), (BUF as usize, 4));
}

#[test]
fn tells_the_guest_of_room_unasked_and_when_asked() {
    let now = Instant::now();
    let mut connection = established(now);
    connection.receive(
        &Header {
            len: BUF,
            ..from_guest(Op::Rw)
        },
        now,
    );
    connection.forwarded(BUF as usize / 4);
    let header = connection.poll_control(now).unwrap();
    assert_eq!((header.op, header.fwd_cnt), (Op::CreditUpdate, BUF / 4));
    assert_eq!(ops(&mut connection, now), []);
    connection.receive(&from_guest(Op::CreditRequest), now);
    assert_eq!(ops(&mut connection, now), [Op::CreditUpdate]);
}

#[test]
fn tells_a_guest_that_made_its_window_smaller() {
    let now = Instant::now();
    let mut connection = established(now);
    connection.receive(
        &Header {
            len: 500,
            ..from_guest(Op::Rw)
        },
        now,
    );
    connection.forwarded(500);
    assert_eq!(ops(&mut connection, now), []);
    connection.receive(
        &Header {
            buf_alloc: 400,
            ..from_guest(Op::CreditUpdate)
        },
        now,
    );
    assert_eq!(ops(&mut connection, now), [Op::CreditUpdate]);
}

#[test]
fn asks_no_more_when_nothing_waits() {
    let now = Instant::now();
    let mut connection = established(now);
    connection.data_header(BUF as usize);
    connection.blocked();
    assert_eq!(ops(&mut connection, now), [Op::CreditRequest]);
    connection.unblocked();
    assert_eq!(connection.deadline(), None);
}

#[test]
fn data_carries_the_credit_that_an_update_would() {
    let now = Instant::now();
    let mut connection = established(now);
    connection.receive(
        &Header {
            len: BUF,
            ..from_guest(Op::Rw)
        },
        now,
    );
    connection.forwarded(BUF as usize);
    assert_eq!(connection.data_header(1).fwd_cnt, BUF);
    assert_eq!(ops(&mut connection, now), []);
}
