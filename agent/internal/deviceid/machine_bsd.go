//go:build freebsd || openbsd

package deviceid

import "runtime"

func builtIn(string) bool { return true }

func serial() (string, error) {
	if runtime.GOOS == "openbsd" {
		return ask("/sbin/sysctl", "-n", "hw.serialno")
	}
	return ask("/bin/kenv", "-q", "smbios.system.serial")
}

func machineID() (string, error) {
	if runtime.GOOS == "openbsd" {
		return ask("/sbin/sysctl", "-n", "hw.uuid")
	}
	return firstFile(nil, "/etc/machine-id", "/etc/hostid")
}
