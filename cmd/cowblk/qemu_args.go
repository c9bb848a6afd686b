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
		Long: `Print the arguments with which QEMU 7.2 or later uses served disks: shared memory, a socket
that reconnects when cowblk is restarted, and the device. They are printed on one line, quoted
for a shell, to be pasted. $(...) works only if no path contains a blank or a special character,
because the shell does not interpret quotes in its result;
eval "qemu-system-x86_64 ... $(cowblk qemu-args vm1)" always works. Give QEMU no other memory
options; add whatever else the guest needs.

QEMU 10.1 and later need --reconnect-ms, because they refuse "reconnect=1". QEMU 9.2 to 10.0
accept both, earlier versions only "reconnect=1".`,
		Example: `  qemu-system-x86_64 -accel kvm -nographic $(cowblk qemu-args vm1)
  cowblk qemu-args vm1 vm1-data --memory 8G --vcpus 4
  cowblk qemu-args vm1 --reconnect-ms
  cowblk qemu-args vm1 --json | jq -r '.[]'`,
		Args:              distinctArgs(1, "NAME"),
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
				fmt.Fprintln(a.err,
					"note: for QEMU before 10.1; later ones refuse reconnect=1 and need --reconnect-ms")
			}
			if a.json {
				return a.printJSON(line)
			}
			quoted := make([]string, len(line))
			for i, arg := range line {
				quoted[i] = shell.Word(arg)
			}
			a.printf("%s", strings.Join(quoted, " "))
			return nil
		},
	}
	g.register(cmd)
	cmd.Flags().BoolVar(&reconnectMS, "reconnect-ms", false,
		"for QEMU 9.2 and later: \"reconnect-ms=1000\" instead of \"reconnect=1\",\nwhich QEMU 10.1 and later refuse")
	return cmd
}

// machineArgs returns the arguments that all disks share. vhost-user needs guest memory that
// another process can map.
func (g *guestOptions) machineArgs() []string {
	mem := fmt.Sprintf("%dM", g.memory>>20)
	return []string{
		"-machine", "q35,memory-backend=mem",
		"-object", "memory-backend-memfd,id=mem,size=" + mem + ",share=on",
		"-m", mem,
		"-smp", fmt.Sprint(g.vcpus),
	}
}

// diskArgs returns the arguments of one disk. QEMU's ids must begin with a letter, which names of
// disks need not.
func (g *guestOptions) diskArgs(name, socket string, index int, reconnectMS bool) []string {
	reconnect := "reconnect=1"
	if reconnectMS {
		reconnect = "reconnect-ms=1000"
	}
	return []string{
		"-chardev", fmt.Sprintf("socket,id=sock-%s,path=%s,%s", name, strings.ReplaceAll(socket,
			",", ",,"), reconnect),
		"-device", fmt.Sprintf(
			"vhost-user-blk-pci,id=disk-%s,chardev=sock-%s,num-queues=%d,bootindex=%d", name, name,
			g.queues, index+1),
	}
}
