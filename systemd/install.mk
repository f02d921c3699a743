# `make install` puts axiond under PREFIX with its unit, user and manifest; all that is left is `systemctl start axiond`.
# With DESTDIR everything lands below it and nothing on this machine is touched.
PREFIX ?= /opt/axiond
CONFIG := $(DESTDIR)/etc/axiond
LOCAL_LIB := $(DESTDIR)/usr/local/lib
ROOT_STAMP = $(DESTDIR)$(PREFIX)/.run-$(call digest,requirements/run.lock)
# The user axiond has to reach the interpreter, which one in a home folder prevents.
INSTALL_PYTHON ?= $(or $(PYTHON),$(firstword $(wildcard /usr/bin/python3.11 /usr/bin/python3)))

.PHONY: install
install: $(ROOT_STAMP) ## install under /opt/axiond with a systemd unit (as root; DESTDIR= and PREFIX= are honoured)
	@umask 022; $(DESTDIR)$(PREFIX)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall .
	@$(if $(DESTDIR),sed -i '1s|^#!$(DESTDIR)|#!|' $$(grep -lI -d skip '^#!$(DESTDIR)/' $(DESTDIR)$(PREFIX)/bin/*))
	@install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/axiond README.md LICENSE
	@install -D -m 644 systemd/axiond.sysusers $(LOCAL_LIB)/sysusers.d/axiond.conf
	@install -D -m 644 systemd/axiond.tmpfiles $(LOCAL_LIB)/tmpfiles.d/axiond.conf
	@install -d $(LOCAL_LIB)/systemd/system $(DESTDIR)/usr/local/bin
	@sed 's|/opt/axiond|$(PREFIX)|g' systemd/axiond.service > $(LOCAL_LIB)/systemd/system/axiond.service
	@ln -sfn $(PREFIX)/bin/axiond $(DESTDIR)/usr/local/bin/axiond
	@install -d -m 2770 $(CONFIG)
	@systemd/install-manifest.sh etc/axiond/axiond.toml $(CONFIG)/axiond.toml
ifeq ($(DESTDIR),)
	@systemd-sysusers $(LOCAL_LIB)/sysusers.d/axiond.conf
	@systemd-tmpfiles --create $(LOCAL_LIB)/tmpfiles.d/axiond.conf
	@setpriv --reuid=axiond --regid=axiond --clear-groups $(PREFIX)/bin/axiond --version >/dev/null || \
	  { echo "axiond: its user cannot run $(INSTALL_PYTHON); name another one with INSTALL_PYTHON=" >&2; exit 1; }
	@if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
endif
	@echo "Installed. Start it:  systemctl start axiond    At every boot:  systemctl enable axiond"

.PHONY: uninstall
uninstall: ## remove what install put there; keep /etc/axiond, /var/lib/axiond and the user
ifeq ($(DESTDIR),)
	@if [ -d /run/systemd/system ]; then systemctl disable --now --quiet axiond.service 2>/dev/null || true; fi
endif
	rm -rf $(DESTDIR)$(PREFIX)
	rm -f $(DESTDIR)/usr/local/bin/axiond $(LOCAL_LIB)/systemd/system/axiond.service
	rm -f $(LOCAL_LIB)/sysusers.d/axiond.conf $(LOCAL_LIB)/tmpfiles.d/axiond.conf
ifeq ($(DESTDIR),)
	@if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
endif
	@echo "Kept: /etc/axiond, /var/lib/axiond, and the user and group axiond"

# verify wants the program to exist; a stand-in takes its place, so that this works on any machine.
.PHONY: check-units
check-units: ## check the systemd unit without installing
	@mkdir -p build/units
	@sed 's|/opt/axiond/bin/[a-z]*|/bin/true|' systemd/axiond.service > build/units/axiond.service
	systemd-analyze verify --man=no build/units/axiond.service
	systemd-analyze security --offline=true --threshold=20 --no-pager build/units/axiond.service | tail -n 1

$(ROOT_STAMP):
	@umask 022; PYTHON=$(INSTALL_PYTHON) requirements/install.sh $(DESTDIR)$(PREFIX) requirements/run.lock
	@rm -f $(DESTDIR)$(PREFIX)/.run-*
	@touch $@

.PHONY: test-systemd
test-systemd: $(DEV_STAMP) ## install on a real systemd in a container and use it (as root; 15 minutes the first time)
	$(BIN)/python -m tests.systemd.run build/systemd/root bench/results/systemd.txt
