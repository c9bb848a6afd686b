// Package control is the daemon's control socket: a server of a dialect of the QEMU Machine
// Protocol (docs/interop/qmp-spec of QEMU), for which other packages register commands, and the
// client that the command line uses.
//
// The dialect: a greeting, a negotiation mode that ends with qmp_capabilities, commands {"execute",
// "arguments", "id"}, replies {"return", "id"} or {"error": {"class", "desc"}, "id"} in the order
// of the commands, and events {"event", "data", "timestamp"} in between. As with QEMU, the input is
// a stream of JSON texts; a command needs no newline after it. Each line of output is one JSON
// object of less than 64 KiB. go-qemu relies on both. There is no out-of-band execution.
//
// A client cannot disturb other clients or the guest's I/O: input is limited to 64 KiB and 64
// levels of nesting, output is queued per client and bounded, and a client that does not read is
// disconnected. [Server.Emit] never waits.
//
// The kernel identifies a client (SO_PEERCRED) as the owner of the process, root, or a member of
// the socket's group. A command is closed to the group unless [Options.GroupMay] has it; a command
// that the group may give can refuse some of its arguments ([OwnerOnly]). Each command that changes
// something ([Server.RegisterChange]) is logged with its sender before it runs.
//
// # Goroutines
//
//   - One accept loop per socket, started by [Server.Serve], ends when the socket is closed.
//   - Three per client, for at most [Options.MaxClients] of the owner and as many others. The
//     reader splits the input into commands and owns the other two; the executor runs commands one
//     at a time; the writer empties the client's output queue. All have ended when [Server.Close]
//     returns.
//   - [Client.Run] has one goroutine beside the one of go-qemu per connection, until it returns.
//     [Client.Events] has one that forwards events until its context ends and its channel is
//     closed.
package control
