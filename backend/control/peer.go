package control

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Peer identifies the process at the other end of a connection, as recorded by the kernel at
// connect (SO_PEERCRED). PID 0: it is not in this PID namespace.
type Peer struct {
	PID int32
	UID uint32
	GID uint32
}

// PeerOf returns the peer of a connection.
func PeerOf(conn *net.UnixConn) (Peer, error) {
	raw, err := conn.SyscallConn()
	var cred *unix.Ucred
	if err == nil {
		cerr := raw.Control(func(fd uintptr) {
			cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		})
		err = cmp.Or(cerr, err)
	}
	if err != nil {
		return Peer{}, fmt.Errorf("user of the peer: %w", err)
	}
	return Peer{PID: cred.Pid, UID: cred.Uid, GID: cred.Gid}, nil
}

// inGroup reports whether the peer was a member of group gid at connect. gid -1: no group.
func (p Peer) inGroup(conn *net.UnixConn, gid int) bool {
	if gid < 0 {
		return false
	}
	if int64(p.GID) == int64(gid) {
		return true
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var groups []uint32
	cerr := raw.Control(func(fd uintptr) { groups, err = peerGroups(int(fd)) })
	return cerr == nil && err == nil && slices.Contains(groups, uint32(gid))
}

// Owner reports whether the peer runs as the user of this process or as root.
func (p Peer) Owner() bool { return p.UID == 0 || int64(p.UID) == int64(os.Geteuid()) }

type peerKey struct{}

// withPeer returns the context for commands of a peer.
func withPeer(ctx context.Context, p Peer) context.Context {
	return context.WithValue(ctx, peerKey{}, p)
}

// OwnerOnly returns nil for a command from the owner of this process or root. For others, or if ctx
// is not a Handler's, it returns an *Error that begins with what.
func OwnerOnly(ctx context.Context, what string) error {
	p, ok := ctx.Value(peerKey{}).(Peer)
	switch {
	case !ok:
		return errorf("%s: only user %d and root may do that", what, os.Geteuid())
	case !p.Owner():
		return errorf("%s: only user %d and root may do that, found user %d",
			what, os.Geteuid(), p.UID)
	}
	return nil
}
