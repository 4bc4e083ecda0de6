package deviceid

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// builtIn: bridges, tunnels and the like have no device behind them; an address
// that the kernel or a program chose has another type than 0
// (Documentation/ABI/testing/sysfs-class-net).
func builtIn(name string) bool {
	folder := filepath.Join("/sys/class/net", name)
	_, err := os.Stat(filepath.Join(folder, "device"))
	kind, _ := os.ReadFile(filepath.Join(folder, "addr_assign_type")) // absent before Linux 3.11
	return err == nil && (len(kind) == 0 || kind[0] == '0')
}

// serial: device trees have it on ARM and MIPS, DMI on PCs.
func serial() (string, error) {
	if runtime.GOOS == "android" {
		return ask("getprop", "ro.serialno")
	}
	text, err := firstFile(nil, "/sys/firmware/devicetree/base/serial-number", "/sys/class/dmi/id/product_serial", "/sys/class/dmi/id/board_serial")
	if err == nil {
		return text, nil
	}
	if text, cpuErr := firstFile(cpuSerial, "/proc/cpuinfo"); cpuErr == nil {
		return text, nil
	}
	return "", err
}

// cpuSerial finds the line `Serial : …`, which older kernels for ARM have.
func cpuSerial(text string) string {
	for line := range strings.SplitSeq(text, "\n") {
		key, value, _ := strings.Cut(line, ":")
		if strings.TrimSpace(key) == "Serial" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func machineID() (string, error) {
	return firstFile(nil, "/etc/machine-id", "/var/lib/dbus/machine-id")
}
