package main

import (
	"errors"
	"math"
	"path/filepath"

	"github.com/spf13/cobra"

	"cowblk/cow/store"
)

// guestOptions describes the guest for "qemu-args" and "xml".
type guestOptions struct {
	memory sizeFlag // bytes
	vcpus  uint
	queues uint   // request queues of the disk; 0: one per vCPU
	socket string // --socket-path; empty: the disk's own
}

func (g *guestOptions) register(cmd *cobra.Command) {
	g.memory = 2 << 30
	f := cmd.Flags()
	f.Var(multipleFlag{&g.memory, 1 << 20, math.MaxInt64}, "memory",
		"memory of the guest; shared with cowblk")
	f.Lookup("memory").DefValue = "2G"
	f.UintVar(&g.vcpus, "vcpus", 2, "`NUMBER` of virtual CPUs")
	f.UintVar(&g.queues, "queues", 0,
		"`NUMBER` of request queues of the disk (default: one for each vCPU)")
	f.StringVar(&g.socket, "socket-path", "", "`PATH` of the socket, if serve has --socket-path")
	_ = cmd.MarkFlagFilename("socket-path")
}

// check validates the options and sets the defaults.
func (g *guestOptions) check(disks int) error {
	const mib = 1 << 20
	switch {
	case g.memory < mib || g.memory%mib != 0:
		return usagef("--memory must be at least 1M, and a multiple of 1M")
	case g.vcpus == 0 || g.vcpus > 4096:
		return usagef("--vcpus must be from 1 to 4096")
	case g.queues > 1024:
		return usagef("--queues must be at most 1024")
	case g.socket != "" && disks > 1:
		return usagef("--socket-path is for one disk")
	}
	if err := checkSocketPath(g.socket); err != nil {
		return err
	}
	if g.queues == 0 {
		g.queues = min(g.vcpus, 64) // the number that serve offers
	}
	return nil
}

// socketOf returns the path of the disk's socket: the one in use if the disk is served.
func (g *guestOptions) socketOf(s *store.Store, disk string) (string, error) {
	if _, err := s.Disk(disk); err != nil {
		return "", err
	}
	if g.socket != "" {
		return filepath.Abs(g.socket) // QEMU and libvirt have another working directory
	}
	v, err := s.ServingError(disk)
	if errors.Is(err, store.ErrInvalid) {
		return "", err
	}
	if v != nil && v.Socket != "" {
		return v.Socket, nil
	}
	if err := s.CheckRunDir(); err != nil {
		return "", err // QEMU would connect to what another user puts there
	}
	return s.Socket(disk)
}
