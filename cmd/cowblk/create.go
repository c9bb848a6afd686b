package main

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"cowblk/cow/store"
)

func newCreate(a *app) *cobra.Command {
	var o store.CreateOptions
	var size, block sizeFlag
	cmd := &cobra.Command{
		Use:   "create NAME [--from IMAGE|DISK@TAG | --base PATH | --table LINE] [--size SIZE]",
		Short: "Make a disk on top of an image, a tag, a file or nothing",
		Long: `Make a disk: an empty writable head on top of an image, of another disk's tag, of any
raw file or block device used in place, or of nothing (zeros). Nothing is copied; the
time does not depend on the size.

--table takes a device-mapper table line of dm-cow. Its maps must be zeroed, and are
then formatted, or must contain the layers already. The data of a map that is formatted
must be unused: no known format, the first and last MiB empty or zeros. Other content is
refused unless --force is given. Removing such a disk keeps the files and devices.

Files of a store and devices that the system uses (mounted, swap, RAID, LVM) are refused;
--force-share accepts such a device as a base.`,
		Example: `  cowblk create vm1 --from debian-12
  cowblk create vm2 --from vm1@configured
  cowblk create big --from debian-12 --size 100G
  cowblk create inplace --base /dev/vg0/golden
  cowblk create scratch --size 20G --block-size 64K
  cowblk create old --table '0 8385866 cow /dev/sdb1 0 /dev/sdb2 /dev/sdb3 0'`,
		DisableFlagsInUseLine: true,
		Args:                  exactArgs("NAME"),
		ValidArgsFunction:     cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.openTrusted()
			if err != nil {
				return err
			}
			for flag, v := range map[string]sizeFlag{"size": size, "block-size": block} {
				if cmd.Flags().Changed(flag) && v <= 0 {
					return usagef("--%s must be more than 0", flag)
				}
			}
			for flag, v := range map[string]string{"from": o.From, "base": o.Base,
				"table": o.Table} {
				if cmd.Flags().Changed(flag) && v == "" {
					return usagef("--%s is empty: expected what the disk is based on", flag)
				}
			}
			o.Size, o.BlockSize = int64(size), int(min(block, 1<<30))
			m, err := s.Create(cmd.Context(), args[0], o)
			if err != nil {
				return err
			}
			_, noSocket := s.Socket(m.Name)
			if err := noSocket; err != nil {
				a.logger().Warn(
					"the default path of the disk's socket is too long: serve and run it with --socket-path", "err", err)
			}
			if a.json {
				return a.printJSON(m)
			}
			switch {
			case o.From != "":
				a.printf("disk %s: %s on %s", m.Name, bytesText(m.Size), o.From)
			case m.Base != nil:
				a.printf("disk %s: %s on %s", m.Name, bytesText(m.Size), m.Base)
			default:
				a.printf("disk %s: %s of zeros", m.Name, bytesText(m.Size))
			}
			if noSocket != nil {
				a.printf("next: %s", a.command("serve", m.Name, "--socket-path",
					a.shortSocket(m.Name)))
				return nil
			}
			a.printf("next: %s, or %s", a.command("run", m.Name), a.command("serve", m.Name))
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.From, "from", "",
		"base the disk on an image, or on a tag of another disk: `IMAGE|DISK@TAG`")
	f.StringVar(&o.Base, "base", "",
		"base the disk on a raw file or block device in place: `PATH` is not copied\nand must not change any more")
	f.StringVar(&o.Table, "table", "",
		"dm-cow's table `LINE`: START LENGTH cow BASE OFFSET [MAP DATA OFFSET]... MAP DATA OFFSET,\nin 512-byte sectors; the last triple is the writable layer")
	f.Var(sectors(&size), "size",
		"size of the disk, at least that of its base: 512, 64K, 20G, 1.5T")
	f.Var(&block, "block-size",
		"unit of copy-on-write, a power of two from 512 to 64K (default 4K)")
	f.BoolVar(&o.Force, "force", false,
		"overwrite maps and data of --table that hold other content; accept\na --base that looks like a qcow2 image as raw")
	f.BoolVar(&o.ForceShare, "force-share", false,
		"use a base although another process holds a lock on it or the system\nuses it: it must not change")
	_ = cmd.RegisterFlagCompletionFunc("from", a.complete(-1, imageNames, tagNames))
	_ = cmd.MarkFlagFilename("base")
	return cmd
}

// shortSocket returns a path for a disk's socket that fits sun_path (unix(7)), outside of the
// store.
func (a *app) shortSocket(name string) string {
	dir := a.getenv("XDG_RUNTIME_DIR")
	switch {
	case dir != "" && len(dir) <= 64:
	case os.Geteuid() == 0:
		dir = "/run"
	default:
		dir = "/tmp"
	}
	return filepath.Join(dir, name[:min(len(name), 30)]+".sock")
}
