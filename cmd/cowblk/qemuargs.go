package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"cowblk/cow/shell"
)

func newQEMUArgs(a *app) *cobra.Command {
	var g guestOptions
	var reconnectMS bool
	cmd := &cobra.Command{
		Use:   "qemu-args NAME...",
		Short: "Print the QEMU arguments that attach disks",
		Long: `Print the arguments that make QEMU 7.2 or later use disks that "cowblk serve" serves:
shared memory, a socket that reconnects when cowblk is restarted, and the device.
They come on one line, quoted, to be pasted, or put in place with $(...) where no path holds a
blank or a character that a shell changes: the shell takes quotes that come from there for
letters. eval "qemu-system-x86_64 ... $(cowblk qemu-args vm1)" works for all. Give QEMU no
other memory options; add what else the guest needs.

QEMU 10.1 and later refuse "reconnect=1": give --reconnect-ms for them. QEMU 9.2 to 10.0 take
both spellings, earlier ones only "reconnect=1".`,
		Example: `  qemu-system-x86_64 -accel kvm -nographic $(cowblk qemu-args vm1)
  cowblk qemu-args vm1 vm1-data --memory 8G --vcpus 4
  cowblk qemu-args vm1 --reconnect-ms
  cowblk qemu-args vm1 --json | jq -r '.[]'`,
		Args:              distinct("NAME"),
		ValidArgsFunction: a.complete(-1, diskNames),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := g.check(len(args)); err != nil {
				return err
			}
			s, err := a.openTrusted()
			if err != nil {
				return err
			}
			line := g.machineArgs()
			for i, name := range args {
				socket, err := g.socketOf(s, name)
				if err != nil {
					return err
				}
				line = append(line, g.diskArgs(name, socket, i, reconnectMS)...)
			}
			if !reconnectMS && a.terminal(a.err) {
				fmt.Fprintln(a.err, "note: for QEMU before 10.1; later ones refuse reconnect=1 and need --reconnect-ms")
			}
			if a.json {
				return a.printJSON(line)
			}
			quoted := make([]string, len(line))
			for i, arg := range line {
				quoted[i] = shell.Word(arg)
			}
			a.say("%s", strings.Join(quoted, " "))
			return nil
		},
	}
	g.register(cmd)
	cmd.Flags().BoolVar(&reconnectMS, "reconnect-ms", false, "for QEMU 9.2 and later: \"reconnect-ms=1000\" instead of \"reconnect=1\",\nwhich QEMU 10.1 and later refuse")
	return cmd
}

// machineArgs are the arguments that all disks of a guest share: vhost-user needs the guest's memory to be a file
// that another process can map.
func (g *guestOptions) machineArgs() []string {
	mem := fmt.Sprintf("%dM", g.memory>>20)
	return []string{
		"-machine", "q35,memory-backend=mem",
		"-object", "memory-backend-memfd,id=mem,size=" + mem + ",share=on",
		"-m", mem,
		"-smp", fmt.Sprint(g.vcpus),
	}
}

// diskArgs attach one disk. QEMU's ids begin with a letter, disks' names need not.
func (g *guestOptions) diskArgs(name, socket string, index int, reconnectMS bool) []string {
	reconnect := "reconnect=1"
	if reconnectMS {
		reconnect = "reconnect-ms=1000"
	}
	return []string{
		"-chardev", fmt.Sprintf("socket,id=sock-%s,path=%s,%s", name, strings.ReplaceAll(socket, ",", ",,"), reconnect),
		"-device", fmt.Sprintf("vhost-user-blk-pci,id=disk-%s,chardev=sock-%s,num-queues=%d,bootindex=%d", name, name, g.queues, index+1),
	}
}
