// Package vhost implements the back-end's side of the vhost-user protocol (QEMU,
// docs/interop/vhost-user.rst) for a virtio-blk device: it reads messages and their file
// descriptors from a UNIX socket, checks them, keeps the state of the connection and of each ring,
// and calls a [Backend]. It does not access guest memory or parse requests: ring layouts are in
// vhost/virtq, the memory table in vhost/guest, the device's requests in vhost/blk.
//
// # Goroutines
//
// [Serve] runs a session in the caller's goroutine. It starts no other, except for a timer that
// warns of a ring without memory. All calls of a Backend come from it, one at a time. It ends when
// the front-end disconnects, when a message is bad, or when the connection is closed; by then every
// running queue has been stopped and every descriptor that came with a message has been closed.
//
// # Rings
//
// A ring runs when it is started (size, addresses and a kick descriptor, or the bit for none, have
// arrived, and memory is shared) and enabled (SET_VRING_ENABLE 1; always, if
// VHOST_USER_F_PROTOCOL_FEATURES was not negotiated). The messages may come in any order, so every
// handler only records its values and then reconciles the ring with them (ring.go). GET_VRING_BASE,
// SET_VRING_ENABLE 0 and resets stop it, which waits for its requests in flight.
//
// # Requests in flight
//
// A front-end may keep a buffer in which the rings mark requests in flight, and pass it to the
// process that follows one that died (GET_INFLIGHT_FD, SET_INFLIGHT_FD; inflight.go). The session
// only locates each ring's region in it; the content is between the rings of two processes
// (vhost/virtq). The front-end's queue size does not bound its rings, so the buffer also has
// regions for the largest ring (inflight_layout.go). A ring without a region runs without tracking,
// and a warning is logged.
//
// # Refusing
//
// A message that breaks the framing (unknown, version, size, number of descriptors, truncated)
// closes the connection. A message that is well formed but cannot be obeyed (ring size 3, regions
// that overlap, a feature that was never offered) changes nothing. It is answered with a non-zero
// u64 if REPLY_ACK was negotiated and the front-end asked for an answer; otherwise the connection
// is closed, since the front-end could not know that the message failed. GET_CONFIG has its own
// error answer, an empty payload.
//
// # Messages
//
//	id  message                 payload (bytes)            fds   answer
//	 1  GET_FEATURES            -                          -     u64
//	 2  SET_FEATURES            u64                        -     ack
//	 3  SET_OWNER               -                          -     ack
//	 4  RESET_OWNER             -                          -     ack; stops and disables all rings
//	 5  SET_MEM_TABLE           8 + 32 per region          0-8   ack
//	 8  SET_VRING_NUM           ring state (8)             -     ack
//	 9  SET_VRING_ADDR          ring addresses (40)        -     ack
//	10  SET_VRING_BASE          ring state (8)             -     ack
//	11  GET_VRING_BASE          ring state (8)             -     ring state, after the last request in flight
//	12  SET_VRING_KICK          u64: index, bit 8 = no fd  0-1   ack
//	13  SET_VRING_CALL          u64: index, bit 8 = no fd  0-1   ack
//	14  SET_VRING_ERR           u64: index, bit 8 = no fd  0-1   ack
//	15  GET_PROTOCOL_FEATURES   -                          -     u64
//	16  SET_PROTOCOL_FEATURES   u64                        -     ack
//	17  GET_QUEUE_NUM           -                          -     u64 (MQ)
//	18  SET_VRING_ENABLE        ring state (8)             -     ack
//	21  SET_BACKEND_REQ_FD      -                          1     ack (BACKEND_REQ)
//	24  GET_CONFIG              12 + up to 256             -     same, or empty: error (CONFIG)
//	25  SET_CONFIG              12 + up to 256             -     ack (CONFIG)
//	31  GET_INFLIGHT_FD         inflight description (24)  -     same, with a descriptor (INFLIGHT_SHMFD)
//	32  SET_INFLIGHT_FD         inflight description (24)  1     ack (INFLIGHT_SHMFD); while no ring runs
//	34  RESET_DEVICE            -                          -     ack (RESET_DEVICE)
//	36  GET_MAX_MEM_SLOTS       -                          -     u64 (CONFIGURE_MEM_SLOTS)
//	37  ADD_MEM_REG             40                         1     ack (CONFIGURE_MEM_SLOTS)
//	38  REM_MEM_REG             40                         0-1   ack (CONFIGURE_MEM_SLOTS)
//	39  SET_STATUS              u64                        -     ack (STATUS)
//	40  GET_STATUS              -                          -     u64 (STATUS)
//
// "ack" is a u64, zero for success, sent only when REPLY_ACK is negotiated and the message has
// need_reply set. A name in parentheses is the protocol feature without which the message is
// refused.
//
// # Protocol features
//
//	bit  feature              offered
//	 0   MQ                   yes
//	 1   LOG_SHMFD            no (dirty log for live migration)
//	 3   REPLY_ACK            yes
//	 5   BACKEND_REQ          yes; the channel is accepted and kept
//	 8   PAGEFAULT            no (postcopy)
//	 9   CONFIG               yes
//	12   INFLIGHT_SHMFD       yes, split rings
//	13   RESET_DEVICE         yes
//	14   INBAND_NOTIFICATIONS no
//	15   CONFIGURE_MEM_SLOTS  yes
//	16   STATUS               yes
//	19   DEVICE_STATE         no
//
// The virtio feature bits are the Backend's; the session adds VHOST_USER_F_PROTOCOL_FEATURES (30)
// to the offer and hides it from the Backend.
package vhost
