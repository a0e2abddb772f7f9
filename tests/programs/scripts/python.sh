# An interpreter that starts; once more, when its files are known.
python3 -c pass
python3 -c pass
