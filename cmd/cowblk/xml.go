package main

import (
	"fmt"
	"regexp"

	"github.com/spf13/cobra"
	"libvirt.org/go/libvirtxml"
)

func newXML(a *app) *cobra.Command {
	var g guestOptions
	var o xmlOptions
	cmd := &cobra.Command{
		Use:   "xml NAME",
		Short: "Print the libvirt XML that attaches a disk",
		Long: `Print a libvirt domain with just what a disk of cowblk needs: the disk, and memory that
is shared with cowblk. Merge it into an existing domain (virsh edit). --domain prints a
whole domain, --disk only the disk, for virsh attach-device.

The QEMU process of libvirt must be able to open the socket.`,
		Example: `  cowblk xml vm1
  cowblk xml vm1 --domain --memory 4G --vcpus 4 > vm1.xml && virsh define vm1.xml
  cowblk xml vm1 --disk --target vdb > disk.xml && virsh attach-device vm0 disk.xml`,
		Args:              exactArgs("NAME"),
		ValidArgsFunction: a.complete(1, diskNames),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := g.check(1); err != nil {
				return err
			}
			if o.wholeDomain && o.disk {
				return usagef("only one of --domain and --disk can be given")
			}
			if o.kind != "" && o.kind != "kvm" && o.kind != "qemu" {
				return usagef("--type is %q, expected kvm or qemu", o.kind)
			}
			if !targetForm.MatchString(o.target) {
				return usagef(
					"--target is %q, expected the name of a disk such as vda, sdb or xvdc",
					o.target)
			}
			s, err := a.openTrusted()
			if err != nil {
				return err
			}
			socket, err := g.socketOf(s, args[0])
			if err != nil {
				return err
			}
			if o.kind == "" {
				o.kind = "qemu"
				if a.kvm() {
					o.kind = "kvm"
				}
			}
			text, err := o.text(args[0], socket, &g)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]string{"xml": text})
			}
			a.printf("%s", text)
			return nil
		},
	}
	g.register(cmd)
	f := cmd.Flags()
	f.BoolVar(&o.wholeDomain, "domain", false,
		"print a whole domain: machine, CPU, console, random numbers")
	f.BoolVar(&o.disk, "disk", false, "print the <disk> element alone")
	f.StringVar(&o.kind, "type", "",
		"`TYPE` of the domain, kvm or qemu (default: kvm if you can use /dev/kvm)")
	f.StringVar(&o.target, "target", "vda", "`NAME` of the disk in the guest")
	_ = cmd.RegisterFlagCompletionFunc("type", cobra.FixedCompletions([]cobra.Completion{"kvm",
		"qemu"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// targetForm is libvirt's form of a disk name without a partition.
var targetForm = regexp.MustCompile(`^(vd|sd|hd|xvd|ubd)[a-z]{1,3}$`)

// xmlOptions holds the options of "cowblk xml".
type xmlOptions struct {
	wholeDomain, disk bool
	kind, target      string
}

func (o *xmlOptions) text(name, socket string, g *guestOptions) (string, error) {
	var text string
	var err error
	if o.disk {
		text, err = o.diskElement(socket, g).Marshal()
	} else {
		text, err = o.domain(name, socket, g).Marshal()
	}
	if o.disk {
		text = xmlPlugNote + text
	}
	text = xmlNote + text
	// Empty elements, in the form that libvirt prints. Every element is on its own line, so no
	// other two tags touch.
	return regexp.MustCompile(`></[a-z_]+>`).ReplaceAllString(text, "/>"), err
}

// Comments in the XML, which libvirt ignores. They must not contain "--", so they do not name the
// disk.
const (
	xmlNote = `<!-- "cowblk serve" must run before the guest starts: "virsh start" waits silently for a socket that is
     not served, until the disk is served. QEMU's user must be allowed to open the socket. -->
`
	xmlPlugNote = `<!-- With "virsh attach-device" the disk does not reconnect when cowblk is restarted, despite the reconnect
     element below. With "cowblk attach" it does. -->
`
)

// diskElement sets no alias, address, cache, discard or serial: libvirt refuses most of these for
// vhostuser, and chooses the rest.
func (o *xmlOptions) diskElement(socket string, g *guestOptions) *libvirtxml.DomainDisk {
	second := uint(1)
	return &libvirtxml.DomainDisk{
		Device: "disk",
		Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: "raw", Queues: &g.queues},
		Source: &libvirtxml.DomainDiskSource{VHostUser: &libvirtxml.DomainDiskSourceVHostUser{
			UNIX: &libvirtxml.DomainChardevSourceUNIX{
				Path: socket,
				Reconnect: &libvirtxml.DomainChardevSourceReconnect{Enabled: "yes",
					Timeout: &second},
			},
		}},
		Target: &libvirtxml.DomainDiskTarget{Dev: o.target, Bus: "virtio"},
	}
}

func (o *xmlOptions) domain(name, socket string, g *guestOptions) *libvirtxml.Domain {
	d := &libvirtxml.Domain{
		Type:   o.kind,
		Name:   name,
		Memory: &libvirtxml.DomainMemory{Value: uint(g.memory >> 20), Unit: "MiB"},
		VCPU:   &libvirtxml.DomainVCPU{Value: g.vcpus},
		// cowblk maps the guest's memory, which therefore must be a shared file.
		MemoryBacking: &libvirtxml.DomainMemoryBacking{
			MemorySource: &libvirtxml.DomainMemorySource{Type: "memfd"},
			MemoryAccess: &libvirtxml.DomainMemoryAccess{Mode: "shared"},
		},
		OS: &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Arch: "x86_64", Machine: "q35",
			Type: "hvm"}},
		Devices: &libvirtxml.DomainDeviceList{Disks: []libvirtxml.DomainDisk{*o.diskElement(socket,
			g)}},
	}
	if !o.wholeDomain {
		return d
	}
	port := uint(0)
	d.Description = fmt.Sprintf("disk %s is served by cowblk", name)
	d.Features = &libvirtxml.DomainFeatureList{ACPI: &libvirtxml.DomainFeature{},
		APIC: &libvirtxml.DomainFeatureAPIC{}}
	if o.kind == "kvm" {
		d.CPU = &libvirtxml.DomainCPU{Mode: "host-passthrough"}
	}
	d.Clock = &libvirtxml.DomainClock{Offset: "utc"}
	d.OnPoweroff, d.OnReboot, d.OnCrash = "destroy", "restart", "destroy"
	d.OS.BootDevices = []libvirtxml.DomainBootDevice{{Dev: "hd"}}
	// Root ports for hot-plugging, one for each device.
	for i := range uint(5) {
		model := "pcie-root-port"
		if i == 0 {
			model = "pcie-root"
		}
		index := i
		d.Devices.Controllers = append(d.Devices.Controllers,
			libvirtxml.DomainController{Type: "pci", Index: &index, Model: model})
	}
	d.Devices.Serials = []libvirtxml.DomainSerial{{
		Source: &libvirtxml.DomainChardevSource{Pty: &libvirtxml.DomainChardevSourcePty{}},
		Target: &libvirtxml.DomainSerialTarget{Type: "isa-serial", Port: &port},
	}}
	d.Devices.Consoles = []libvirtxml.DomainConsole{{
		Source: &libvirtxml.DomainChardevSource{Pty: &libvirtxml.DomainChardevSourcePty{}},
		Target: &libvirtxml.DomainConsoleTarget{Type: "serial", Port: &port},
	}}
	d.Devices.RNGs = []libvirtxml.DomainRNG{{
		Model: "virtio",
		Backend: &libvirtxml.DomainRNGBackend{Random: &libvirtxml.DomainRNGBackendRandom{
			Device: "/dev/urandom"}},
	}}
	return d
}
