#!/usr/bin/env bash
# Installs what some tests run beside Python, on Debian and its kin; what is there is left alone.
# Elsewhere, or without the right to install, it says what is missing and exits with 1.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin  # a user's PATH often lacks the administrator's programs

# program:package, and python headers, without which DeepSpeed compiles nothing
needed=(
  ip:iproute2 tc:iproute2 ss:iproute2 mount:mount setpriv:util-linux pkill:procps c++:g++
  promtool:prometheus
  ssh:openssh-client sshd:openssh-server logrotate:logrotate systemd-analyze:systemd
  slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client munged:munge
)
programs=() packages=()
miss() {
  programs+=("$1")
  [[ " ${packages[*]} " == *" $2 "* ]] || packages+=("$2")
}
for one in "${needed[@]}"; do
  command -v "${one%%:*}" > /dev/null || miss "${one%%:*}" "${one##*:}"
done
python=.venv/bin/python
[ -x "$python" ] || python=python3
headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))' 2> /dev/null || true)
[ -e "$headers/Python.h" ] || miss Python.h python3-dev

[ ${#packages[@]} -gt 0 ] || exit 0
update="apt-get update --quiet=2 -o Acquire::http::Timeout=20"
install="apt-get install --yes --no-install-recommends ${packages[*]}"
echo "missing: ${programs[*]}; packages of Debian: ${packages[*]}" >&2
if ! command -v apt-get > /dev/null; then
  echo "install what has these programs, and run this again" >&2
  exit 1
elif [ "$(id -u)" -eq 0 ]; then
  $update
  DEBIAN_FRONTEND=noninteractive $install
elif command -v sudo > /dev/null && sudo --non-interactive true 2> /dev/null; then
  sudo $update
  sudo DEBIAN_FRONTEND=noninteractive $install
else
  echo "run as root: $install" >&2
  exit 1
fi
