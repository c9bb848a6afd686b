package main

import (
	"os"
	"path/filepath"
	"syscall"

	"cowblk/backend/nbd"
	"cowblk/cow/store"
)

// listenWithReserve is server.Listen; a UNIX socket on the store's own file system may have the store's reserve, if that is full.
func listenWithReserve(st *store.Store, server *nbd.Server, at nbd.Address) (bound nbd.Address, err error) {
	if at.Network != "unix" || !sameDevice(st.Dir(), filepath.Dir(at.Path)) {
		return server.Listen(at)
	}
	err = st.InNeed(func() error {
		bound, err = server.Listen(at)
		return err
	})
	return bound, err
}

func sameDevice(a, b string) bool {
	var dev [2]uint64
	for i, path := range []string{a, b} {
		fi, err := os.Stat(path)
		if err != nil {
			return false
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			return false
		}
		dev[i] = st.Dev
	}
	return dev[0] == dev[1]
}
