// Package nbd offers disks for reading over the Network Block Device protocol, on
// UNIX, TCP and vsock sockets: backups of a tag, or a look at one, while the guest
// runs. Clauses are those of the NBD project's doc/proto.md.
//
// go-nbd's server does the talking, and it trusts its client. Each connection
// therefore goes through a guard, a net.Conn that stands between the client and
// go-nbd and lets nothing through that it has not read as a whole, checked, and
// put into the plainest form. What the guard does instead of, or to, go-nbd:
//
//	client sends                       go-nbd alone                           guarded
//	option of any length               allocates the length, 4 GiB            refused above maxOption
//	INFO or GO, lengths disagree       takes later bytes for the option       ERR_INVALID
//	INFO a known name, GO another      serves the first                       ERR_UNKNOWN
//	LIST, several exports              one reply with all names in it         one reply a name
//	STRUCTURED_REPLY, STARTTLS, ...    ERR_UNSUP                              ERR_UNSUP, at most maxOptions of them
//	EXPORT_NAME                        ERR_UNSUP                              GO to go-nbd, answered in its own form (NO_ZEROES too); disconnects if unknown
//	GO                                 flags say writable                     flags say read-only (the reply is rewritten)
//	READ                               allocates its length, at most 32 MiB   handed on in pieces of chunkSize
//	READ beyond the end                reply of success, then disconnects     EINVAL
//	READ that the disk cannot answer   reply of success, then disconnects     EIO; disconnects if a piece was sent already
//	WRITE                              EPERM                                  EPERM, never reaches go-nbd
//	TRIM, WRITE_ZEROES                 takes later bytes for their payload    EPERM
//	FLUSH and others not offered       the same                               EINVAL
//
// A reply that the guard cannot make sense of ends the connection: should a later
// go-nbd answer in another way, exports stop working rather than seem writable.
//
// # Limits
//
// Connections are limited in all and for each export, the time for the handshake,
// for one message, and between requests. When all connections are taken, the
// oldest one that is still in its handshake makes room, so that half-open ones
// lock nobody out. A connection costs about chunkSize of memory.
//
// There is neither encryption nor authentication: whoever can connect can read
// every export and list their names. A UNIX socket is its owner's (and a group's),
// TCP listens on the loopback interface unless told otherwise, and a vsock port is
// open to every guest of the machine.
//
// # Goroutines
//
//	goroutine             started by       owns                          ends
//	accept, one a socket  Server.Listen    the listening socket          Server.Close
//	client, one each      accept           the connection, a pin on its  the client leaves, breaks a rule or a limit;
//	                                       export                        RemoveExport; Server.Close
//
// # Not here yet
//
// Writable exports belong into the guard's table of commands (request.go): as
// go-nbd offers no FLUSH, each write must be durable before it is answered. Sparse
// reads and block status need structured replies, which go-nbd does not speak:
// the guard would answer STRUCTURED_REPLY and META_CONTEXT itself (option.go), and
// READ and BLOCK_STATUS after it.
package nbd
