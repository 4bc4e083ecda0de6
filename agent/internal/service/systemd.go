//go:build unix

package service

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// systemd is asked and told through systemctl.
func systemd(run func(...string) (string, error)) Manager {
	const unit = Name + ".service"
	return &scripted{
		name: "systemd", path: "/etc/systemd/system/" + unit, mode: 0o644, render: unitFile, run: run, fits: hasCredentials,
		enable:  [][]string{{"systemctl", "daemon-reload"}, {"systemctl", "enable", unit}},
		disable: [][]string{{"systemctl", "disable", "--now", unit}},
		forget:  [][]string{{"systemctl", "daemon-reload"}},
		start:   [][]string{{"systemctl", "start", unit}},
		stop:    [][]string{{"systemctl", "stop", unit}},
		log:     "journalctl -u " + Name,
		state: func(run func(...string) (string, error)) (State, string, error) {
			// It exits with 3 for whatever is not active.
			text, err := run("systemctl", "is-active", unit)
			switch text {
			case "active", "reloading":
				return Running, "", nil
			case "activating":
				return Running, "starting, or about to start again", nil
			case "inactive", "deactivating":
				return Stopped, "", nil
			case "failed":
				return Stopped, "it failed", nil
			}
			return Stopped, text, err
		},
	}
}

// hasCredentials refuses a systemd that cannot hand files to a service.
func hasCredentials(s Spec, run func(...string) (string, error)) error {
	const since = 247
	text, err := run("systemctl", "--version") // systemd 252 (252.39-1~deb12u1)
	if err != nil {
		return err
	}
	words := append(strings.Fields(text), "", "")
	if version, err := strconv.Atoi(words[1]); err == nil && version < since && s.User == "" {
		return fmt.Errorf("systemd %d cannot hand files to a service, as %d and later can: name a user who may read them with --user, such as --user root", version, since)
	}
	return nil
}

// hidden are folders that the service does not see.
var hidden = []string{"/home", "/root", "/run/user", "/tmp", "/var/tmp"}

// unitFile is systemd.service(5). The user is one that exists while the service
// runs, and can read nothing of its own: files come as credentials, which systemd
// has read (since version 247). PrivateUsers= is left out: the kernels of many devices have
// no user namespaces, and the service would fail there (217/USER).
func unitFile(s Spec) (string, error) {
	for _, folder := range hidden {
		if strings.HasPrefix(filepath.Clean(s.Program)+"/", folder+"/") {
			return "", fmt.Errorf("%s is below %s, which the service does not see: copy the program to /usr/local/bin, and install it from there", s.Program, folder)
		}
	}
	var credentials strings.Builder
	words := []string{unitWord(s.Program)}
	for _, a := range s.Args {
		flag, path, ok := s.file(a)
		if !ok || s.User != "" {
			words = append(words, unitWord(a))
			continue
		}
		if strings.ContainsAny(path, ":%") {
			return "", fmt.Errorf("%q: systemd takes no colon and no per cent in the path of a credential; rename it, or choose --user", path)
		}
		fmt.Fprintf(&credentials, "LoadCredential=%s:%s\n", flag, path)
		words = append(words, `"--`+flag+`=${CREDENTIALS_DIRECTORY}/`+flag+`"`)
	}
	user := "DynamicUser=yes\n"
	if s.User != "" {
		user = "User=" + unitEscape.Replace(s.User) + "\n"
	}
	return `# ` + written + `
[Unit]
Description=` + description + `
Documentation=` + homepage + `
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
WatchdogSec=60
ExecStart=` + strings.Join(words, " \\\n    ") + `
` + credentials.String() + `Restart=always
RestartSec=10
TimeoutStopSec=30
LimitNOFILE=65536
` + user + `UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
`, nil
}

var unitEscape = strings.NewReplacer(`%`, `%%`)

// unitWord quotes a word of a command line (systemd.service(5), Command lines).
func unitWord(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `%`, `%%`, `$`, `$$`).Replace(s) + `"`
}
