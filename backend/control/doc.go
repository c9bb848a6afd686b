// Package control is the daemon's control socket: a server of the QEMU Machine
// Protocol's dialect (docs/interop/qmp-spec of QEMU) whose commands the rest of the
// process registers, and the client that the command line uses to reach it.
//
// The dialect: a greeting, a negotiation mode that ends with qmp_capabilities, commands
// {"execute", "arguments", "id"}, replies {"return", "id"} or {"error": {"class",
// "desc"}, "id"} in the order of the commands, and events {"event", "data",
// "timestamp"} in between. As with QEMU, the input is a stream of JSON texts: a command
// needs no newline after it, which go-qemu relies on. Each line of output is one JSON
// object and is shorter than 64 KiB, which go-qemu relies on too. There is no
// out-of-band execution.
//
// Nothing a client does reaches another client or the guest's I/O: input is cut at
// 64 KiB and 64 levels of nesting, output is queued per client and bounded, and a
// client that does not read is closed. [Server.Emit] never waits.
//
// A client is the owner of the process, root, or a member of the socket's group
// ([OwnerOnly]), as the kernel says (SO_PEERCRED). Who sends a command that changes
// something ([Server.RegisterChange]) is logged before it runs.
//
// # Goroutines
//
//   - One accept loop per socket, started by [Server.Serve], ends when the socket is closed.
//   - Three per client, at most [Options.MaxClients] of the owner and as many others. The reader cuts commands
//     out of the stream and is the owner of the other two; the executor runs commands
//     one at a time; the writer empties the client's output queue. All three have ended
//     when [Server.Close] returns.
//   - [Client.Run] has one goroutine beside the one that go-qemu keeps per connection,
//     and [Client.Events] one that passes events on until its context ends. Run's have
//     ended when it returns, those of Events when its channel is closed.
package control
