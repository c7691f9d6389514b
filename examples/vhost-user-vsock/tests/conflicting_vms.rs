//! VMs in each other's way are refused before the first of them is served.

mod support;

use support::directory;
use support::refusal::refused;

const VM_3: &str = "guest-cid=3,socket=D/3.sock,uds-path=D/3.vsock";

#[test]
fn refuses_vms_in_each_others_way() {
    let dir = directory();
    let table: &[(&str, &[&str])] = &[
        (
            "guest-cid=3,socket=D/4.sock,uds-path=D/4.vsock",
            &["--vm guest-cid=3: is another VM's CID", "a CID of its own"],
        ),
        (
            "guest-cid=4,socket=D/3.sock,uds-path=D/4.vsock",
            &[
                "--vm socket=D/3.sock: is also the path of --vm socket=D/3.sock",
                "its own",
            ],
        ),
        (
            "guest-cid=4,socket=D/../3.sock,uds-path=D/4.vsock",
            &["--vm socket=D/../3.sock: is also the path of", "its own"],
        ),
        (
            "guest-cid=4,socket=D/4.sock,uds-path=D/3.vsock",
            &[
                "--vm uds-path=D/3.vsock: is also the path of --vm uds-path=D/3.vsock",
                "its own",
            ],
        ),
        (
            "guest-cid=4,socket=D/3.vsock,uds-path=D/4.vsock",
            &[
                "--vm socket=D/3.vsock: is also the path of --vm uds-path=D/3.vsock",
                "its own",
            ],
        ),
        (
            "guest-cid=4,socket=D/4.sock,uds-path=D/3.vsock_4",
            &["--vm uds-path=D/3.vsock_4: is where port 4 of --vm uds-path=D/3.vsock leads"],
        ),
    ];
    for (vm, words) in table {
        // `D/../` must lead back to the directory.
        let back = format!("/../{}/", dir.path().file_name().unwrap().to_str().unwrap());
        let vm = vm.replace("D/../", &format!("D{back}"));
        let words: Vec<_> = words
            .iter()
            .map(|word| word.replace("D/../", &format!("D{back}")))
            .collect();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        refused(dir.path(), &["--vm", VM_3, "--vm", &vm], &words);
    }
}

/// Which is the host, and which the sibling?
#[test]
fn refuses_a_host_cid_that_is_a_siblings() {
    let dir = directory();
    let grouped = format!("{VM_3},groups=a+b");
    let four = "guest-cid=4,socket=D/4.sock,uds-path=D/4.vsock,groups=b+c,host-cids=5+3";
    let words = [
        "--vm host-cids=5+3: 3 is also the CID of a VM in the same group 'b'",
        "choose another CID, or other groups",
    ];
    for vms in [[&grouped, four], [four, &grouped]] {
        refused(dir.path(), &["--vm", vms[0], "--vm", vms[1]], &words);
    }
}

/// The last VM's mistake is told before the first VM's sockets are created.
#[test]
fn creates_nothing_for_the_vms_before_the_mistake() {
    let dir = directory();
    let second = "guest-cid=2,socket=D/2.sock,uds-path=D/2.vsock";
    refused(
        dir.path(),
        &["--vm", VM_3, "--vm", second],
        &["--vm guest-cid=2"],
    );
}
