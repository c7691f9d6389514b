//! Packets of a guest's delivered to its sibling, into buffers of Linux's size or from the
//! backlog.

#![allow(missing_docs, reason = "criterion's macros make the items")]
#![allow(clippy::unwrap_used, reason = "a benchmark panics where it fails")]

use std::sync::{Arc, Mutex};
use std::time::Instant;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vsock_packet::{GuestCid, Header, Op, Payload, RawHeader, VsockAddr};
use vsock_router::{Groups, Limits, Member, Packet, Port, Receiver, Switch};

/// Room for payload in an RX buffer of Linux's, in bytes.
const ROOM: usize = 3732;
/// A window that the connection never fills.
const BUF_ALLOC: u32 = 4 << 20;

/// An RX queue of so many buffers, all in the same place.
struct Rx(Mutex<Buffers>);

struct Buffers {
    left: usize,
    place: [u8; ROOM],
}

impl Port for Rx {
    fn is_up(&self) -> bool {
        true
    }

    fn pass(&self, fill: &mut dyn FnMut(&mut dyn Receiver)) {
        fill(&mut *self.0.lock().unwrap());
    }

    fn wake(&self) {}
}

impl Buffers {
    fn take(&mut self) -> bool {
        let taken = self.left > 0;
        self.left -= usize::from(taken);
        taken
    }
}

impl Receiver for Buffers {
    fn put(&mut self, packet: &mut Packet<'_>) -> bool {
        let taken = self.take();
        if taken {
            std::hint::black_box(packet.header_for(ROOM));
            packet.payload.copy_to_bytes(&mut self.place);
        }
        taken
    }

    fn put_control(&mut self, header: &RawHeader) -> bool {
        std::hint::black_box(header);
        self.take()
    }
}

/// Two guests and a connection from the first to the second.
struct House {
    sender: Arc<Member>,
    receiver: Arc<Member>,
    rx: Arc<Rx>,
    header: Header,
    sent: u32,
    now: Instant,
}

impl House {
    fn new() -> Self {
        let (switch, now) = (Switch::new(Limits::default()), Instant::now());
        let [one, other] = [3, 4].map(|cid| GuestCid::new(cid).unwrap());
        let join = |cid| {
            let rx = Arc::new(Rx(Mutex::new(Buffers {
                left: usize::MAX,
                place: [0; ROOM],
            })));
            let groups = Groups::from(["a".to_owned()]);
            let member = switch.join(cid, groups, Arc::<Rx>::clone(&rx)).unwrap();
            (member, rx)
        };
        let ((sender, _), (receiver, rx)) = (join(one), join(other));
        let [src, dst] = [VsockAddr::new(one, 1024), VsockAddr::new(other, 80)];
        let header = Header {
            buf_alloc: BUF_ALLOC,
            ..Header::new(Op::Request, src, dst)
        };
        sender.open(&header, &receiver, now).unwrap();
        let house = Self {
            sender,
            receiver,
            rx,
            header: Header {
                op: Op::Rw,
                ..header
            },
            sent: 0,
            now,
        };
        house.say(Op::Response);
        house
    }

    fn set_buffers(&self, count: usize) {
        self.rx.0.lock().unwrap().left = count;
    }

    fn say(&self, op: Op) {
        let header = Header {
            src: self.header.dst,
            dst: self.header.src,
            op,
            fwd_cnt: self.sent,
            ..self.header
        };
        let packet = Packet::new(header, Payload::EMPTY);
        self.receiver.send(&[packet], self.now);
    }

    /// Sends a packet.
    fn send(&mut self, bytes: &[u8]) {
        let header = Header {
            len: bytes.len() as u32,
            ..self.header
        };
        let packet = Packet::new(header, Payload::from_bytes(bytes));
        self.sender.send(&[packet], self.now);
        self.sent = self.sent.wrapping_add(header.len);
    }
}

/// Straight into the receiver's buffers; each packet is read and told of.
fn delivery(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("switch/deliver");
    for size in [1, 64, 1024, 3732, 16 << 10, 64 << 10] {
        let (mut house, bytes) = (House::new(), vec![1; size]);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| {
                house.send(&bytes);
                house.say(Op::CreditUpdate);
            });
        });
    }
}

/// 256 KiB that waited, when the receiver posts its buffers.
fn backlog(criterion: &mut Criterion) {
    const WAITING: usize = 256 << 10;
    let mut group = criterion.benchmark_group("switch/flush 256 KiB of packets of");
    for size in [64, 4096, 64 << 10] {
        let bytes = vec![1; size];
        let waiting = || {
            let mut house = House::new();
            house.set_buffers(0);
            (0..WAITING / size).for_each(|_| house.send(&bytes));
            house.set_buffers(usize::MAX);
            house
        };
        group.throughput(Throughput::Bytes(WAITING as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter_batched_ref(
                waiting,
                |house| assert!(house.receiver.flush(house.now)),
                BatchSize::LargeInput,
            );
        });
    }
}

criterion_group!(benches, delivery, backlog);
criterion_main!(benches);
