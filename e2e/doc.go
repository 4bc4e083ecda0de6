// Package e2e tests the built programs from outside: one or more real edges, real
// agents, and real visitors (curl, Chromium, HTTP/1.1 to 3 clients).
//
// # Running
//
//	make build && cd e2e && go test .
//
// The programs are looked for in ../bin, or where IOTTUNNEL_BIN says; a missing
// one is an error. curl, Chromium (as `chromium`), the emulators of
// qemu-user-static, OpenSSH, git, mosquitto and Redis must be installed, and where
// networks are made, iproute2 and nftables: `make test` does that on Debian and
// Ubuntu. Cases that make a [harness.Network] need root; without it they fail.
//
// One case, on one face, with what the processes say:
//
//	go test . -run 'TestNameIsKept/tls' -v
//	IOTTUNNEL_FACES=tls go test .
//
// IOTTUNNEL_HEAVY=1 moves 1 GiB where it is otherwise 64 MiB, makes crowds of
// 10,000, has nodes fall silent at heartbeats of 25 s, and holds promises of how long
// something takes to what they say. Browser cases leave
// screenshots in shots/. `make soak` runs some cases so, one at a time, and then
// TestSoak and TestSoakNodes, which are otherwise left out, for SOAKTIME.
//
// # Cases and faces
//
// A case is a function of a [harness.Kind]: it asks it for a face of its own
// ([harness.Own]), which it may stop, kill and configure, or for the shared one
// ([harness.Shared]), where it only takes a device. It knows the edge through
// [harness.Face] alone: where visitors and agents reach it, how it is reloaded and
// ended, what it logs and holds.
//
// The face "nodes" is three nodes over one Redis: agents come to one of them by TLS,
// and visitors enter at another without, so that all they see has passed between
// nodes. Cases about nodes themselves bring clusters of their own
// ([harness.StartCluster]), on loopback at 127.0.0.1, 127.0.0.2 and 127.0.0.3 or each
// on a host of its own.
//
// TestBesideLastVersion needs the Caddy of another commit, and is left out without:
//
//	IOTTUNNEL_LAST=/path/to/caddy go test . -run TestBesideLastVersion -v
//
// With Setup.Host an edge runs on a host of a [harness.Network]: namespaces around a
// router, with devices and visitors on other hosts, that may be far away, lose
// packets, fall silent or stand behind boxes of all kinds.
//
// A new face is a type with the methods of harness.Kind and harness.Face, and a
// line in harness.Kinds; every case then runs on it. What it cannot run stands in
// the table notOn with its reason, and each run prints case, face and outcome.
//
// Nothing here sleeps to let something happen: cases wait for a line, a message, an
// end of file, or poll with a deadline through harness.Eventually where a state
// announces itself in no other way. Every wait has a limit, so that what hangs fails.
package e2e
