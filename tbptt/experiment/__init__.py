"""For scripts of your own: `launch` and `train_and_test` give flags, resume, TensorBoard, seeds.

A script imports this package, `from tbptt import experiment`, defines a frozen dataclass `Settings`
and a function `main(settings, options)`, and ends with `launch(main, Settings)`. `main` builds
streams, model and trainer, and calls `train_and_test`; or, if that is not enough, `Claim`, `fit`
and `finish` one by one.
"""

from tbptt.experiment.devices import replicas_of as replicas_of
from tbptt.experiment.errors import UnfinishedError as UnfinishedError
from tbptt.experiment.errors import UsageError as UsageError
from tbptt.experiment.errors import output as output
from tbptt.experiment.errors import usage_errors as usage_errors
from tbptt.experiment.fit import Fit as Fit
from tbptt.experiment.fit import data_of as data_of
from tbptt.experiment.fit import finish as finish
from tbptt.experiment.fit import fit as fit
from tbptt.experiment.folder import RESULT_FILE as RESULT_FILE
from tbptt.experiment.folder import SETTINGS_FILE as SETTINGS_FILE
from tbptt.experiment.folder import Claim as Claim
from tbptt.experiment.folder import FinishedError as FinishedError
from tbptt.experiment.folder import Result as Result
from tbptt.experiment.folder import read_object as read_object
from tbptt.experiment.folder import write_file as write_file
from tbptt.experiment.folder import write_result as write_result
from tbptt.experiment.launch import launch as launch
from tbptt.experiment.seeds import SEEDS_FILE as SEEDS_FILE
from tbptt.experiment.seeds import over_seeds as over_seeds
from tbptt.experiment.seeds import run_seeds as run_seeds
from tbptt.experiment.settings import Options as Options
from tbptt.experiment.settings import Settings as Settings
from tbptt.experiment.settings import setting as setting
from tbptt.experiment.train_and_test import train_and_test as train_and_test
