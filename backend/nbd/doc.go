// Package nbd exports disks read-only over the Network Block Device protocol, on UNIX, TCP and
// vsock sockets: to back up or inspect a tag while the guest runs. Clauses are those of the NBD
// project's doc/proto.md.
//
// go-nbd's server implements the protocol, but it trusts its client. Each connection therefore has
// a guard, a net.Conn between the client and go-nbd that reads each message completely, checks it,
// and forwards it in its simplest form. The guard's effect:
//
//	client sends                   go-nbd alone                       with the guard
//	option of any length           allocates the length, 4 GiB        refused above maxOption
//	INFO or GO, lengths disagree   takes later bytes for the option   ERR_INVALID
//	INFO a name, GO another        serves the first                   ERR_UNKNOWN
//	LIST, several exports          one reply with all names           one reply for each name
//	STRUCTURED_REPLY, STARTTLS     ERR_UNSUP                          ERR_UNSUP, maxOptions of them
//	EXPORT_NAME                    ERR_UNSUP                          forwarded as GO (see below)
//	GO                             flags say writable                 flags say read-only
//	READ                           allocates its length, 32 MiB       in pieces of chunkSize
//	READ beyond the end            success, then disconnects          EINVAL
//	READ that fails                success, then disconnects          EIO; disconnects after a piece
//	WRITE                          EPERM                              EPERM, never reaches go-nbd
//	TRIM, WRITE_ZEROES             takes later bytes for a payload    EPERM
//	FLUSH and others not offered   the same                           EINVAL
//
// The client gets EXPORT_NAME's own reply, with NO_ZEROES if negotiated; an unknown name
// disconnects. The guard rewrites the flags in the reply to GO.
//
// A reply that the guard does not know ends the connection: if a later go-nbd answers differently,
// exports fail rather than appear writable.
//
// # Limits
//
// There are limits for all connections and for those of one export, and time limits for the
// handshake, for one message, and between requests. At the limit of connections, the oldest one
// that is still in its handshake is disconnected, so that half-open connections lock nobody out. A
// connection uses about chunkSize of memory.
//
// There is neither encryption nor authentication: any client that can connect can read and list all
// exports. A UNIX socket is accessible to its owner and an optional group, TCP listens on the
// loopback interface by default, and a vsock port is accessible to every guest of the machine.
//
// # Goroutines
//
//	goroutine               started by     owns                  ends
//	accept, one per socket  Server.Listen  the listening socket  Server.Close
//	client, one each        accept         the connection,       the client disconnects or
//	                                       a pin on its export   violates a limit; RemoveExport;
//	                                                             Server.Close
//
// # Not implemented
//
// Writable exports belong in the guard's table of commands (request.go). go-nbd offers no FLUSH, so
// each write must be durable before its reply. Sparse reads and block status need structured
// replies, which go-nbd does not implement: the guard would answer STRUCTURED_REPLY and
// META_CONTEXT itself (option.go), and then READ and BLOCK_STATUS.
package nbd
